"""The codec in federated learning frameworks: one module each, imported only where it is used.

- :mod:`resfed_codec.integrations.flower`: ``pip install 'resfed-codec[flower]'``
- :mod:`resfed_codec.integrations.nvflare`: ``pip install 'resfed-codec[nvflare]'``

docs/integrations.md shows how to add them to an existing application.
"""
