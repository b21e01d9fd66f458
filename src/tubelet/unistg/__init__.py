"""Uni-STG: tubes made from captions with coarse times (SpaceVLLM, section on the Uni-STG data)."""
