"""Behavior bundles: versioned, verified folders of the tensors that steer a base model.

`bundle.Bundle` is one, `store.resolve.resolve` finds it by name, `suite.compose` joins several. No module here imports
torch before tensors are used.
"""
