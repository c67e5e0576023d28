"""Token alignment between two vocabularies."""
