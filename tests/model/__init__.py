"""A plain model of volumes: dicts, bytes and sets. It knows nothing of the code it judges, and imports none of it."""

from model.tree import Node, Tree
from model.volume import ModelSnapshot, ModelVolume

__all__ = ["ModelSnapshot", "ModelVolume", "Node", "Tree"]
