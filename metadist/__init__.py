"""metadist: distributed meta-training. Workers adapt on tasks, a parameter server takes the outer step."""

__version__ = "0.1.0"
