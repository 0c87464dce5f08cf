"""A frozen model made better in a domain: one file a method.

``settings.py``: the methods in YAML. ``learner.py``: what the loop trains; ``features.py``: what is fitted to stored
vectors. ``adapter.py``: what is kept; ``forms.py``: how it works again over its base. Where learned tokens enter a
tower: ``models/anatomy.py``, ``models/inject.py``, ``models/text_prompts.py``.
"""

from __future__ import annotations
