"""What answers are worth: their scoring, the documents they answer, and the gap that steering closes."""
