"""The lm-eval-hybrid command line: one module for each command."""
