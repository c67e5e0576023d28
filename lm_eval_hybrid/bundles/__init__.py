"""Behavior bundles: what steers a base model, as a versioned, verified folder (DESIGN section 3).

`bundle.Bundle` is one, `resolve.resolve` finds it by name, `suite.compose` puts several together. No module here
imports torch before tensors are asked for.
"""
