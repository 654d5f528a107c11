"""The prompt in the end: a sentence is typed, A, B and the average answer side by side."""

from __future__ import annotations

import re

from orchd.demo import examples
from orchd.demo.real import RealStory
from orchd.demo.real_screen import RealScreen
from orchd.demo.screen import Screen
from orchd.demo.story import Story


def side_by_side(story: Story, screen: Screen) -> None:
    """Ask for sentences until an empty line. Raises `EOFError` and `KeyboardInterrupt` as `input` does."""
    a, b = (set(examples.words(peer.sentences)) for peer in story.peers)
    screen.prompt_help(sorted(a), sorted(b))
    prefix = examples.instruction(story.examiner.sentences)
    while typed := input(screen.prompt_sign()).strip():
        words = re.findall(r"[a-z]+", typed.lower().removeprefix(prefix.lower()))
        unknown = [word for word in words if word not in a | b]
        if unknown or not words:
            screen.not_in_the_language(unknown)
            continue
        screen.side_by_side(*story.finale.ask(prefix + " ".join(words)))


def questions(story: RealStory, screen: RealScreen) -> None:
    """Ask for questions until an empty line. Raises `EOFError` and `KeyboardInterrupt` as `input` does."""
    screen.questions_help([home.household for home in story.homes])
    while typed := input(screen.prompt_sign()).strip():
        screen.side_by_side(*story.ask(typed))
