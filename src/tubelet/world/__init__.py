"""The toy world: a small moving-picture world with exact truth.

`scene` says what happens (seeded), `render` draws it, `language` speaks about it, `tasks` asks and answers
questions about it, `files` writes mp4 files with annotations. Training on it needs no video library.
"""

from tubelet.world.choreography import make_scene
from tubelet.world.scene import Actor, Event, Scene
from tubelet.world.tasks import Question, make_questions

__all__ = ["Actor", "Event", "Question", "Scene", "make_questions", "make_scene"]
