"""`python -m lm_eval_hybrid`: the same as `lm-eval-hybrid`."""

from lm_eval_hybrid.commands.main import main

raise SystemExit(main())
