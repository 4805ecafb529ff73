"""The records of a set in order, tape after tape: what is missing or damaged comes as such."""

from __future__ import annotations

from blockplane.model.errors import TapeEndError, TapeError, TapeFullError, TapeOrderError, TapeSetError
from blockplane.stream.media.closing import contents_ahead
from blockplane.stream.media.codec import Contents, RecordKind
from blockplane.stream.media.labels import TapeIdentity, read_label, require_next
from blockplane.stream.media.medium import Kind, Medium
from blockplane.stream.media.rack import Rack
from blockplane.stream.media.records import Damage, Mark, Record, new_buffer, read_record


class Walk:
    """Reads a set from its first tape on.

    Attributes
    ----------
    identity : of the tape that is read. problems : what was found damaged, a sentence each.
    """

    def __init__(self, rack: Rack) -> None:
        self._rack = rack
        self.problems: list[str] = []
        self._number = 0
        self.identity: TapeIdentity | None = None
        self._medium: Medium | None = None
        self._last: RecordKind | None = None
        self._ahead: Record | None = None
        self._is_over = False
        self._due = self._take(1) + 1

    @property
    def set_id(self) -> bytes:
        """The set's."""
        assert self.identity is not None, "a tape was taken"
        return self.identity.set_id

    def _take(self, number: int) -> int:
        """Go on with a tape; return the sequence of its label."""
        medium = self._rack.tape(number)
        found = read_label(medium)
        require_next(found, number, self.identity, self.identity.set_id if self.identity is not None else None)
        self._medium, self.identity, self._number = medium, found, number
        self._last = RecordKind.LABEL
        return found.label.first_sequence - 1

    def next(self) -> Record | Damage | None:
        """Return the next record, or what is damaged or missing where it should be; None: the set ends, as it should.

        Raises
        ------
        TapeEndError : the last tape ends before its end record. TapeError and its kinds : a tape is not the one that
            comes next.
        """
        if self._ahead is not None:
            record, self._ahead = self._ahead, None
            return self._passed(record)
        while not self._is_over:
            assert self._medium is not None, "a tape was taken"
            found = read_record(self._medium, new_buffer())
            if isinstance(found, Mark):
                missing = None if found.kind is Kind.FILEMARK else self._at_end()
                if missing is not None:
                    return missing
            elif isinstance(found, Damage):
                self._due += 1
                if found.head is not None:
                    self._last = found.head.kind
                elif self._last is RecordKind.TABLE:
                    self._last = RecordKind.END  # nothing else stands there
                return self._noted(found)
            else:
                return self._held_against(found)
        return None

    def _passed(self, record: Record) -> Record:
        self._due, self._last = record.head.sequence + 1, record.head.kind
        return record

    def _held_against(self, record: Record) -> Record | Damage:
        """Hold a record against the one that is due."""
        head, name = record.head, self._name
        if head.set_id != self.set_id:
            raise TapeSetError(
                f"{name} holds records of another set, {head.set_id.hex()}, from record {head.position} on",
                "the tape was overwritten in part",
            )
        if head.tape != self._number or head.sequence < self._due:
            what = f"record {head.sequence} of tape {head.tape} stands where record {self._due} belongs"
            return self._noted(Damage(head.position, what, head))
        if head.sequence > self._due:
            missing = Damage(
                head.position, f"records {self._due} to {head.sequence - 1} of the set are missing before it"
            )
            self._ahead = record
            return self._noted(missing)
        return self._passed(record)

    def _noted(self, damage: Damage) -> Damage:
        self.problems.append(f"{self._name}, record {damage.position}: {damage.what}")
        return damage

    @property
    def _name(self) -> str:
        assert self._medium is not None, "a tape was taken"
        return self._medium.name

    def _at_end(self) -> Damage | None:
        """Go on at the end of a tape: to the next one, or to the set's end."""
        if self._last is RecordKind.END:
            self._require_no_more()
            self._is_over = True
            return None
        before, last = self._name, self._last
        try:
            label_sequence = self._take(self._number + 1)
        except (TapeFullError, TapeSetError, TapeOrderError):
            raise
        except TapeError as error:
            if last is RecordKind.CONTINUES or self._number < self._rack.n_named or self._rack.has_changer:
                raise
            raise TapeEndError(
                f"{before} ends early: behind record {self._due - 1} of the set there is neither an end record nor a "
                "tape that goes on",
                "go on with writing it (tape write --resume), or name the tapes that follow",
            ) from error
        if last is not RecordKind.CONTINUES and label_sequence > self._due:
            missing = f"{before} ends early: records {self._due} to {label_sequence - 1} of the set are missing"
            self._due = label_sequence + 1
            self.problems.append(missing)
            return Damage(0, missing)
        self._due = label_sequence + 1
        return None

    def contents_ahead(self) -> Contents | None:
        """Return the contents of the group that is being read, None where they cannot be."""
        return contents_ahead(self._medium) if self._medium is not None else None

    def _require_no_more(self) -> None:
        """Refuse tapes that were named behind the set's last."""
        if self._rack.has_changer or self._number >= self._rack.n_named:
            return
        before, last = self._name, self._number
        self._take(self._number + 1)
        raise TapeOrderError(f"the set ends on {before}, tape {last}, and {self._name} was named behind it", "")
