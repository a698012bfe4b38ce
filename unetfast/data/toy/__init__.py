"""Small true-to-life copies of the data sets, drawn by code; they make source folders and stand before the data path."""

from unetfast.data.toy.layouts import TOY_LAYOUTS, write_toy

__all__ = ["TOY_LAYOUTS", "write_toy"]
