"""What happened in a run, newest first, as virtual rows with a filter; samples of one step fold into one row."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from rich.cells import cell_len
from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Input

from engine.display import describe
from engine.errors import safe_text
from engine.events import Event, Sampled, Started, Validated
from sdtui.format import fit
from sdtui.messages import Say
from sdtui.widgets.field import Field
from sdtui.widgets.row_list import Cell, RowList

MARKS = {
    "started": "\u25cf", "saved": "\u25b2", "sampled": "\u25c6", "validated": "\u25c7", "requested": ">",
    "paused": "\u2016", "continued": "\u25b8", "warning": "\u26a0", "interrupted": "\u25a0", "failed": "\u2717",
    "finished": "\u2713",
}  # fmt: skip
STYLES = {"warning": "warn", "failed": "bad", "interrupted": "warn", "finished": "good", "saved": "good"}
LIMIT = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One row of the log."""

    kind: str
    step: int
    time: float
    text: str
    count: int = 1


def entry_of(event: Event) -> Entry:
    """Return the row of an event."""
    text = describe(event)
    if isinstance(event, Started):
        text = f"{text}, seed {event.seed}, pid {event.pid}"
        if event.resumed_from is not None:
            text = f"resumed after step {event.resumed_from}: {text}"
    elif isinstance(event, Validated):
        text = f"validation loss {event.loss:.4g}"
    elif isinstance(event, Sampled):
        text = f"sample: {safe_text(event.prompt, limit=300)}"
    return Entry(kind=event.kind, step=event.step, time=event.time, text=text)


def clock(seconds: float) -> str:
    """Return a Unix time as 12:41:07 local time."""
    try:
        return time.strftime("%H:%M:%S", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return "--:--:--"


class EventLog(Vertical):
    """The events of a run; `/` filters them by text or kind."""

    def __init__(self, *, name: str) -> None:
        super().__init__(id=name, classes="pane")
        self._entries: list[Entry] = []
        self._shown: list[Entry] = []
        self._filter = ""
        self._told: Entry | None = None
        self.border_title = "Events"

    def compose(self) -> ComposeResult:
        """Lay out the log."""
        yield RowList(self._row, name="event-rows", empty="nothing yet")
        yield Field(placeholder="show events that hold this text", id="event-filter", compact=True)

    def on_mount(self) -> None:
        """Hide the filter until it is asked for."""
        self.query_one(Input).display = False

    @property
    def _rows(self) -> RowList:
        return self.query_one(RowList)

    def add(self, events: Iterable[Event]) -> None:
        """Put new events on top; a row that the cursor stands on stays under it."""
        before = len(self._shown)
        for event in events:
            entry = entry_of(event)
            last = self._entries[-1] if self._entries else None
            if last and isinstance(event, Sampled) and (last.kind, last.step) == (entry.kind, entry.step):
                entry = replace(entry, count=last.count + 1, text=f"{last.count + 1} samples")
                self._entries[-1] = entry
                if self._shown and self._shown[-1] is last:
                    self._shown[-1] = entry
                    continue
            else:
                self._entries.append(entry)
            if self._matches(entry):
                self._shown.append(entry)
        if len(self._entries) > LIMIT * 5 // 4:
            del self._entries[:-LIMIT]
            self._choose()
        rows = self._rows
        self._show(cursor=rows.cursor + len(self._shown) - before if rows.cursor else 0)

    def clear_after(self, step: int) -> None:
        """Forget the events beyond a step, which a resume made void."""
        self._entries = [entry for entry in self._entries if entry.step <= step]
        self._choose()

    def start_filter(self) -> None:
        """Open the filter's input."""
        field = self.query_one(Input)
        field.display = True
        field.focus()

    def _matches(self, entry: Entry) -> bool:
        return self._filter in f"{entry.kind} {entry.step} {entry.text}".casefold()

    def _choose(self) -> None:
        self._shown = [entry for entry in self._entries if self._matches(entry)]
        self._show(cursor=0)

    def _show(self, cursor: int) -> None:
        self._rows.show_rows(len(self._shown), cursor=cursor)
        found = f"{len(self._shown)} of {len(self._entries)}" if self._filter else str(len(self._entries))
        self.border_subtitle = f"{found}  / filter"

    def _row(self, index: int, width: int) -> list[Cell]:
        entry = self._shown[-1 - index]
        style = STYLES.get(entry.kind, "")
        cells: list[Cell] = [(f"{clock(entry.time)} ", "dim")] if width >= 50 else []
        used = (9 if cells else 0) + 9
        step = str(entry.step)[:6].rjust(6)
        return [
            *cells,
            (f"{step} ", "dim"),
            (f"{MARKS.get(entry.kind, '?')} ", style),
            (fit(entry.text, width - used), style),
        ]

    @on(RowList.Moved)
    def _tell(self, event: RowList.Moved) -> None:
        """Say the whole of an event that the user goes to and that is cut; one that new events push stays untold."""
        event.stop()
        if not self._rows.has_focus or event.index >= len(self._shown):
            return
        entry, told = self._shown[-1 - event.index], self._told
        self._told = entry
        if entry is not told and cell_len(entry.text) > self._rows.scrollable_content_region.width - 9:
            self.post_message(Say(f"step {entry.step}, {clock(entry.time)}: {entry.text}"))

    @on(Input.Changed, "#event-filter")
    def _filter_changed(self, event: Input.Changed) -> None:
        event.stop()
        self._filter = event.value.strip().casefold()
        self._choose()

    @on(Input.Submitted, "#event-filter")
    def _filter_done(self, event: Input.Submitted) -> None:
        event.stop()
        self.close_filter()

    def close_filter(self) -> bool:
        """Leave the filter's input, which stays in view while it filters; tell whether it was open."""
        field = self.query_one(Input)
        was_open = field.has_focus
        field.display = bool(self._filter)
        if was_open:
            self._rows.focus()
        return was_open
