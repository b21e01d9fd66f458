"""tubelet finds when and where: a video and a sentence go in, a tube comes out."""

__version__ = "0.1.0"
