"""Token lengths, the most frequent tags and the folders of a data set; one at a time where there is no room for all."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.message import Message

from engine.errors import safe_text
from sdtui import recent
from sdtui.dataset_facts import DataFacts, token_bins
from sdtui.format import count, fit, fit_end
from sdtui.widgets.histogram import Bar, Histogram
from sdtui.widgets.row_list import Cell, RowList

if TYPE_CHECKING:
    from engine.plan import Plan

SIDES = ("tokens", "tags", "folders")


class DataSide(Vertical):
    """Three panes over one data set."""

    @dataclass
    class TagChosen(Message):
        """The pictures with a tag are wanted."""

        tag: str

    @dataclass
    class FolderChosen(Message):
        """A folder's options are wanted."""

        number: int

    def __init__(self, *, name: str) -> None:
        super().__init__(id=name)
        self._plan: Plan | None = None
        self._facts: DataFacts | None = None
        self._images: list[int] = []
        self._shown = SIDES[0]

    def compose(self) -> ComposeResult:
        """Lay out the panes."""
        with Vertical(classes="pane side-pane -current", id="tokens-pane"):
            yield Histogram(name="tokens")
        with Vertical(classes="pane side-pane", id="tags-pane"):
            yield RowList(self._tag_row, name="tags")
        with Vertical(classes="pane side-pane", id="folders-pane"):
            yield RowList(self._folder_row, name="folders", empty=" none: a adds one")

    @property
    def folder(self) -> int | None:
        """The folder under the cursor while the folders have the focus."""
        folders = self.query_one("#folders", RowList)
        return folders.cursor if folders.has_focus and folders.count else None

    def show(self, plan: "Plan | None", facts: DataFacts | None) -> None:
        """Show a plan's captions and folders, as far as they are known."""
        self._plan, self._facts = plan, facts
        subsets = plan.config.subsets if plan else ()
        self._images = np.bincount(plan.catalog.subsets_N, minlength=len(subsets)).tolist() if plan else []
        bins = token_bins(facts.tokens_N, facts.limit) if facts else []
        self.query_one(Histogram).show(
            [Bar(label=label, value=value, note="cut" if is_cut and value else "") for label, value, is_cut in bins]
        )
        self.query_one("#tags", RowList).show_rows(len(facts.tags) if facts else 0)
        self.query_one("#folders", RowList).show_rows(len(subsets))
        self._title()

    def _title(self) -> None:
        facts = self._facts
        titles = {"tokens": "Tokens", "tags": "Tags", "folders": "Folders"}
        if facts is not None and len(facts.tokens_N):
            middle, longest = int(np.median(facts.tokens_N)), int(facts.tokens_N.max())
            titles["tokens"] = f"Tokens: median {middle}, longest {longest}"
            titles["tags"] = f"{count(facts.num_tags)} {'words' if facts.is_words else 'tags'}"
        for side, title in titles.items():
            pane = self.query_one(f"#{side}-pane")
            pane.border_title = title
            pane.border_subtitle = "t next" if self.app.size.width < 120 else ""

    def next_side(self) -> None:
        """Show the next pane and focus it."""
        self.show_side(SIDES[(SIDES.index(self._shown) + 1) % len(SIDES)])

    def show_side(self, name: str) -> None:
        """Show a pane and focus it, where it can be focused."""
        self._shown = name
        for side in SIDES:
            self.query_one(f"#{side}-pane").set_class(side == name, "-current")
        if name != "tokens":
            self.query_one(f"#{name}", RowList).focus()

    def _tag_row(self, index: int, width: int) -> list[Cell]:
        assert self._facts is not None
        tag, times = self._facts.tags[index]
        return [(fit(count(times), 8, is_right=True), "dim"), (fit(f"  {safe_text(tag)}", width - 8), "")]

    def _folder_row(self, index: int, width: int) -> list[Cell]:
        assert self._plan is not None
        subset = self._plan.config.subsets[index]
        path = recent.shown_path(subset.metadata_file or subset.image_dir)
        return [
            (fit(f"\u00d7{subset.num_repeats}", 5, is_right=True), "accent"),
            (fit(count(self._images[index]), 8, is_right=True), "dim"),
            (f"  {fit_end(path, width - 16)}", ""),
        ]

    @on(RowList.Chosen, "#tags")
    def _choose_tag(self, event: RowList.Chosen) -> None:
        assert self._facts is not None
        self.post_message(self.TagChosen(self._facts.tags[event.index][0]))

    @on(RowList.Chosen, "#folders")
    def _choose_folder(self, event: RowList.Chosen) -> None:
        self.post_message(self.FolderChosen(event.index))
