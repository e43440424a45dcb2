"""Who is let in, and who is turned away for good: by the configuration, by the folder, by what it had promised."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from raftq.replication.membership import Configuration, Member
from raftq.replication.roster import FOR_EVER, Roster
from raftq.replication.wire import Hello, Refusal


class Here:
    """A node's roster, and the configuration that is in force there."""

    def __init__(self, stored: bytes | None = None, **members: Member) -> None:
        self.index, self.committed = 10, True
        self.configuration = Configuration(members)
        self.roster = Roster("test", stored, lambda: (self.index, self.configuration, self.committed))

    def changed(self, **members: Member) -> None:
        """Another configuration is in force."""
        self.index += 1
        self.configuration = Configuration(self.configuration.members | members)

    def restarted(self) -> Here:
        again = Here(self.roster.encode(), **self.configuration.members)
        again.index, again.committed = self.index, self.committed
        return again

    def met(self, **changed: Any) -> None:
        said = hello(**changed)
        assert self.roster.admit(said) is None
        self.roster.met(said)

    def refusal(self, **changed: Any) -> Refusal:
        refusal = self.roster.admit(hello(**changed))
        assert refusal is not None
        return refusal

    def admits(self, **changed: Any) -> bool:
        return self.roster.admit(hello(**changed)) is None


def hello(**changed: Any) -> Hello:
    """Of n2 in its folder, at the configuration of index 10."""
    said = Hello(2, "test", "n2", "folder", 3, "", "n2:1", "0", 10, 1, config_index=10, member=True)
    return msgspec.structs.replace(said, **changed)


def member(uuid: str | None = None, *, voter: bool = True) -> Member:
    return Member("n2:1", voter=voter, uuid=uuid)


def test_another_cluster_is_refused() -> None:
    refusal = Here(n2=member()).refusal(cluster_id="other")
    assert "belongs to cluster test, not other" in refusal.reason
    assert not refusal.final


# By the folder


@pytest.mark.parametrize("uuid", [None, "folder"])
def test_a_member_is_admitted_in_its_folder_again_and_again(uuid: str | None) -> None:
    here = Here(n2=member(uuid))
    for boot in range(3, 6):
        here.met(boot=boot)
    assert here.admits(boot=5)
    assert here.restarted().admits(boot=5)


def test_of_a_member_that_no_configuration_names_by_folder_the_first_one_met_counts() -> None:
    """So it is when a cluster begins; an empty folder under the name of a voter has forgotten its votes."""
    here = Here(n2=member())
    here.met()
    for roster in (here, here.restarted()):
        refusal = roster.refusal(node_uuid="emptied", boot=1)
        assert "another data folder than the one that is its own (emptied)" in refusal.reason
        assert (refusal.final, refusal.config_index) == (True, 10)


def test_the_folder_that_the_configuration_names_counts_though_another_was_met() -> None:
    here = Here(n2=member())
    here.met(node_uuid="old", boot=9, last_index=50)
    here.roster.matched("n2", 50)
    here.changed(n2=member("folder"))
    assert here.refusal(node_uuid="old", boot=10).final
    here.met(boot=1, last_index=0)  # nor do the starts and the log of the other bind it
    assert here.admits(boot=1, last_index=0)
    assert here.refusal(node_uuid="old", boot=10).reason.endswith("raftq cluster replace")


def test_a_new_folder_under_the_old_name_is_admitted_once_the_old_one_is_replaced() -> None:
    here = Here(n2=member("old"))
    here.met(node_uuid="old", boot=9)
    assert here.refusal(boot=1, member=False, config_index=0).final
    here.changed(n2=member(voter=False))
    here.roster.forget(["n2"])
    here.met(boot=1, member=False, config_index=0, last_index=0)
    here.changed(n2=member("folder", voter=False))
    assert here.admits(boot=1)
    assert here.refusal(node_uuid="old", boot=10).final


def test_what_was_known_of_a_replaced_folder_does_not_bind_the_new_one() -> None:
    """A roster that was on its way from a former leader brought it back after it was forgotten, or a crash did. The new
    folder, which nobody has named yet, was then turned away for good."""
    here = Here(n2=member("old"))
    here.met(node_uuid="old", boot=9)
    here.changed(n2=member(voter=False))
    here.roster.forget(["n2"])
    here.roster.told({"n2": ("old", 9, 7)})
    for roster in (here, here.restarted()):
        assert roster.admits(boot=1, last_index=0)


def test_a_folder_that_a_change_replaces_is_refused_for_good_only_when_that_is_committed() -> None:
    """The change may yet be cut off the log, and the old folder be needed."""
    here = Here(n2=member("folder"))
    here.met()
    here.changed(n2=member("new", voter=False))
    here.committed = False
    assert not here.refusal().final
    here.committed = True
    refusal = here.refusal()
    assert (refusal.final, refusal.config_index) == (True, 11)


# By what it had promised


@pytest.mark.parametrize("uuid", [None, "folder"])
def test_an_old_copy_of_a_folder_is_refused_for_good(uuid: str | None) -> None:
    here = Here(n2=member(uuid))
    here.met()
    here.roster.matched("n2", 7)
    for roster in (here, here.restarted()):
        assert roster.admits(boot=3, last_index=7)
        by_boot, by_match = roster.refusal(boot=2), roster.refusal(boot=4, last_index=6)
        assert "an old copy of its data folder (start 2, seen 3)" in by_boot.reason
        assert "the log of node n2 ends at 6, but it had acknowledged 7" in by_match.reason
        for refusal in (by_boot, by_match):  # no later configuration heals a folder that forgot
            assert (refusal.final, refusal.config_index) == (True, FOR_EVER)
        assert (by_boot.acknowledged, by_match.acknowledged) == (0, 7)  # with this in its log it goes on


def test_a_later_configuration_does_not_let_an_old_copy_in_as_a_guest() -> None:
    here = Here(n2=member("folder"))
    here.met()
    assert here.refusal(boot=2, config_index=99).final


def test_what_was_acknowledged_only_grows() -> None:
    here = Here(n2=member())
    here.met()
    for index in (7, 5, 6):
        here.roster.matched("n2", index)
        assert here.roster.match("n2") == 7
    here.met(boot=4)
    assert here.roster.match("n2") == 7
    here.roster.matched("stranger", 9)
    assert here.roster.match("stranger") == 0


# By the configuration


def test_a_node_that_is_no_member_is_refused_and_may_be_added_later() -> None:
    here = Here(n1=Member("n1:1"))
    refusal = here.refusal(member=False, config_index=0)
    assert "is not a member of this cluster (n1): raftq cluster add" in refusal.reason
    assert not refusal.final
    here.changed(n2=member(voter=False))
    assert here.admits(member=False, config_index=0)


@pytest.mark.parametrize(
    ("committed", "config_index", "still", "final"),
    [
        (True, 9, True, True),
        (True, 10, False, True),  # its own removal is in its log, and it does not know that it is committed
        (False, 9, True, False),
        (False, 10, False, False),
        (True, 0, False, False),  # it was never a member
        (True, 11, False, False),  # it knows better than this node
    ],
)
def test_a_member_that_was_removed_is_refused_for_good_once_that_is_committed(
    committed: bool, config_index: int, still: bool, final: bool
) -> None:
    here = Here(n1=Member("n1:1"))
    here.committed = committed
    refusal = here.refusal(config_index=config_index, member=still)
    assert (refusal.final, refusal.config_index) == (final, 10 if final else 0)


def test_a_member_by_a_later_configuration_is_a_guest() -> None:
    """This node lags: it must be able to follow a leader whose addition it has not seen."""
    here = Here(n1=Member("n1:1"))
    assert here.admits(config_index=11)
    assert not here.admits(config_index=11, member=False)  # that one knows that it is none
    assert not here.admits(config_index=10)


def test_a_folder_that_took_over_a_name_by_a_later_configuration_is_a_guest() -> None:
    here = Here(n2=member("old"))
    here.met(node_uuid="old", boot=9)
    assert here.admits(config_index=11, boot=1)
    assert here.refusal(config_index=10, boot=1).final


def test_a_node_that_waits_to_be_added_lets_everybody_of_its_cluster_in() -> None:
    here = Here()
    assert here.admits(config_index=0, member=False)
    assert here.admits(node_id="n9")
    assert not here.admits(cluster_id="other")


# What is kept, and what is spread


def test_an_identity_is_written_at_once_and_an_acknowledgement_when_something_is() -> None:
    here = Here(n2=member())
    here.met()
    assert (here.roster.dirty, here.roster.changed) == (True, False)
    here.roster.encode()
    here.met()
    assert (here.roster.dirty, here.roster.changed) == (False, False)
    here.roster.matched("n2", 7)
    assert (here.roster.dirty, here.roster.changed) == (False, True)
    here.roster.encode()
    here.roster.matched("n2", 7)
    assert not here.roster.changed
    here.met(boot=4)
    assert here.roster.dirty


def test_what_the_leader_knows_is_taken_over_where_it_says_more() -> None:
    leader, here = Here(n2=member()), Here(n2=member())
    leader.met(boot=5)
    leader.roster.matched("n2", 7)
    here.met(boot=3)
    here.roster.encode()
    here.roster.told(leader.roster.known())
    assert here.roster.changed
    again = here.restarted()
    assert again.refusal(boot=4).final
    assert again.refusal(boot=5, last_index=6).final
    assert again.admits(boot=5, last_index=7)
    again.roster.told({"n2": ("folder", 1, 1)})
    assert again.roster.known() == {"n2": ("folder", 5, 7)}
    assert not again.roster.changed
    again.roster.told({"n2": ("folder", 1, 9)})
    again.roster.told({"n2": ("folder", 6, 1)})
    assert again.roster.known() == {"n2": ("folder", 6, 9)}


def test_of_another_folder_than_the_one_met_nothing_is_taken_over() -> None:
    here = Here(n2=member())
    here.met()
    here.roster.told({"n2": ("other", 99, 99)})
    assert here.roster.known() == {"n2": ("folder", 3, 0)}


def test_what_is_told_of_a_node_that_was_never_met_is_kept() -> None:
    """It was not, until something else was: a restart forgot it."""
    here = Here(n2=member())
    here.roster.told({"n2": ("folder", 3, 7)})
    assert here.roster.changed
    assert here.restarted().refusal(boot=2).final


def test_who_is_forgotten_is_forgotten_with_the_next_write() -> None:
    """That is the one which holds the configuration for which it was forgotten: a crash after it brought it back."""
    here = Here(n2=member())
    here.met()
    here.roster.encode()
    here.roster.forget(["n3"])
    assert not here.roster.dirty
    here.roster.forget(["n2", "n3"])
    assert here.roster.dirty
    assert here.roster.known() == {}
    assert here.restarted().roster.known() == {}
