"""What the notebooks ask: one file a notebook, with the notebook's name, and what several of them share."""
