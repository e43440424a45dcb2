from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from raftq.storage.machine import keys, packing, publishing, topics
from raftq.storage.machine.commands import (
    Command,
    DefineQueue,
    DefineTopic,
    DeleteQueue,
    DeleteTopic,
    Expire,
    Part,
    Publish,
    QueueSettings,
    Request,
    Subscribe,
    Unsubscribe,
    decode,
    encode,
    grows,
)
from raftq.storage.machine.replies import Published, QueueReady, Refused, TopicDefined, TopicDeleted
from tests.storage.conftest import Hands, blob

TOPIC = "default/news"
A, B, C = "default/a", "default/b", "default/c"


@pytest.fixture
def news(hands: Hands) -> Hands:
    """Two queues, one of which takes red alone."""
    hands.do(DefineTopic(TOPIC))
    hands.do(Subscribe(TOPIC, A))
    hands.do(Subscribe(TOPIC, B, b'{"color":["red"]}'))
    return hands


def colored(*colors: str, **options: Any) -> Part:
    attributes = [b'{"color":"%b"}' % color.encode() for color in colors]
    packed = [packing.pack_message(b"%d" % at, attributes=text) for at, text in enumerate(attributes)]
    return Part(options.pop("priority", 0), options.pop("delay_ms", None), packing.pack(packed), **options)


def bodies(hands: Hands, queue: str) -> list[bytes]:
    return [packing.unpack_message(m.data).body for m in hands.machine.view().peek(queue, "ready", 1_000)[0]]


def test_a_topic_is_defined_once(hands: Hands) -> None:
    assert hands.do(DefineTopic(TOPIC)) == TopicDefined(created=True)
    assert hands.do(DefineTopic(TOPIC)) == TopicDefined(created=False)


def test_what_there_is_not_is_refused(hands: Hands) -> None:
    for command in (
        DeleteTopic(TOPIC),
        Subscribe(TOPIC, A),
        Unsubscribe(TOPIC, A),
        Publish(TOPIC, [Part(0, None, blob(b"x"))], Request("r", 1_000)),
    ):
        assert hands.do(command).reason == "unknown_topic"
    hands.do(DefineTopic(TOPIC))
    assert hands.do(Unsubscribe(TOPIC, A)).reason == "unknown_subscription"


def test_a_subscription_creates_its_queue_and_takes_another_filter(hands: Hands) -> None:
    hands.do(DefineTopic(TOPIC))
    assert hands.do(Subscribe(TOPIC, A)) == TopicDefined(created=True)
    assert hands.info(A).ready == 0
    assert hands.do(Subscribe(TOPIC, A, b'{ "color": ["red"] }')) == TopicDefined(created=False)
    [(key, subscription)] = hands.machine.view().subscriptions(TOPIC)
    assert (key, subscription.filter, subscription.created_index) == (A, b'{"color":["red"]}', 2)


@pytest.mark.parametrize("given", [b"", b'{"color":"red"}'])
def test_a_bad_filter_is_refused(news: Hands, given: bytes) -> None:
    assert news.do(Subscribe(TOPIC, A, given)).reason == "invalid"


def test_topic_and_queue_are_of_one_namespace(news: Hands) -> None:
    assert news.do(Subscribe(TOPIC, "other/a")).reason == "invalid"
    assert news.do(Unsubscribe(TOPIC, "other/a")).reason == "unknown_subscription"


def test_each_queue_gets_what_its_filter_takes(news: Hands) -> None:
    reply = news.do(Publish(TOPIC, [colored("red", "blue", "red")]))
    assert reply == Published([2, 1, 2], [])
    assert news.effects == [QueueReady(A, 3), QueueReady(B, 2)]
    assert (bodies(news, A), bodies(news, B)) == ([b"0", b"1", b"2"], [b"0", b"2"])
    assert news.machine.view().topic(TOPIC).published == 3


def test_the_counts_stand_in_the_order_of_the_request(news: Hands) -> None:
    parts = [colored("red", "blue", positions=[1, 3]), colored("blue", "red", priority=9, positions=[0, 2])]
    assert news.do(Publish(TOPIC, parts)) == Published([1, 2, 2, 1], [])
    assert bodies(news, B) == [b"1", b"0"]


def test_without_a_subscription_nothing_is_stored(hands: Hands) -> None:
    hands.do(DefineTopic(TOPIC))
    assert hands.do(Publish(TOPIC, [Part(0, None, blob(b"x", b"y"))])) == Published([0, 0], [])


def test_each_queue_has_its_own_delay_and_dedup_window(news: Hands) -> None:
    news.do(DefineQueue(A, QueueSettings(delay_ms=500, dedup_window_ms=0)))
    part = colored("red", dedup_ids=["x"])
    assert news.do(Publish(TOPIC, [part])) == Published([2], [])
    assert news.do(Publish(TOPIC, [part])) == Published([1], [1])
    assert (news.info(A).delayed, news.info(B).ready, news.info(B).duplicates) == (2, 1, 1)


def test_a_filter_keeps_the_dedup_ids_with_their_messages(news: Hands) -> None:
    news.do(Publish(TOPIC, [colored("blue", "red", dedup_ids=["x", "y"])]))
    assert news.do(Publish(TOPIC, [colored("red", "red", dedup_ids=["x", "y"])])) == Published([1, 0], [1, 2])
    assert bodies(news, B) == [b"1", b"0"]


def test_one_full_queue_refuses_all(news: Hands) -> None:
    news.do(DefineQueue(B, QueueSettings(max_messages=1)))
    assert news.do(Publish(TOPIC, [colored("red", "red")])).reason == "full"
    assert news.info(A).ready == 0
    assert news.do(Publish(TOPIC, [colored("red", "blue")])) == Published([2, 1], [])


def test_a_publish_is_bounded_by_its_copies(hands: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    hands.do(DefineTopic(TOPIC))
    for at in range(11):
        hands.do(Subscribe(TOPIC, f"default/q{at}", b'{"color":["none"]}'))
    refused = hands.do(Publish(TOPIC, [Part(0, None, blob(*[b"x"] * 1_000))]))
    assert isinstance(refused, Refused)
    assert refused.reason == "too_large"
    monkeypatch.setattr("raftq.storage.machine.publishing.COPIED_BYTES_MAX", 100)
    assert hands.do(Publish(TOPIC, [Part(0, None, blob(b"xxxx"))])).reason == "too_large"


@pytest.mark.parametrize(
    ("command", "copies"),
    [
        (Subscribe(TOPIC, A), 4),
        (Subscribe(TOPIC, A, b'{"color":["red"]}'), 8),
        (Subscribe(TOPIC, A, b'{"color":["none"]}'), 8),
        (DefineQueue(A, QueueSettings(max_leased_per_group=2)), 12),
        (DefineQueue(A, QueueSettings(), partitions=2), 44),
        (DefineQueue(A, QueueSettings(max_leased_per_group=2), partitions=2), 52),
    ],
)
def test_a_copy_counts_as_what_it_costs(
    hands: Hands, command: Command, copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hands.do(DefineTopic(TOPIC))
    hands.do(command)
    if isinstance(command, DefineQueue):
        hands.do(Subscribe(TOPIC, A))
    four = colored(*["red"] * 4)
    parts = [colored("red", priority=at) for at in range(4)]
    taken = copies != 8 or b"red" in getattr(command, "filter", b"")
    for given, more in (
        ([four], 0),
        (parts, 6),
        ([replace(four, dedup_ids=["a", None, "b", "c"])], 3 * taken),
        ([replace(four, replace_keys=["a", None, "b", "c"])], 15 * taken),
        ([replace(four, dedup_ids=["d", "e", "f", "g"], replace_keys=list("abcd"))], 24 * taken),
    ):
        monkeypatch.setattr(publishing, "COPIES_MAX", copies + more - 1)
        refused = hands.do(Publish(TOPIC, given))
        assert refused == Refused("too_large", refused.detail)
        monkeypatch.setattr(publishing, "COPIES_MAX", copies + more)
        assert hands.do(Publish(TOPIC, given)) == Published([int(taken)] * 4, [])


def test_the_refusal_says_what_counts(hands: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    hands.do(DefineTopic(TOPIC))
    hands.do(Subscribe(TOPIC, A))
    monkeypatch.setattr(publishing, "COPIES_MAX", 1)
    assert hands.do(Publish(TOPIC, [colored("red", "red")])).detail == (
        "the topic has 1 subscriptions: over all of them one publish makes at most 1 copies and 16,777,216 bytes. "
        "A message counts 1, or 2 where there is a filter; 1 more with a dedup_id, 5 with a replace_key, "
        "2 in a queue with max_leased_per_group, 10 in one with partitions; each further priority or delay counts 2. "
        "Publish fewer at once"
    )


def test_subscriptions_are_bounded(hands: Hands) -> None:
    hands.do(DefineTopic(TOPIC))
    for at in range(64):
        assert hands.do(Subscribe(TOPIC, f"default/q{at}")) == TopicDefined(created=True)
    assert hands.do(Subscribe(TOPIC, A)).reason == "too_many_subscriptions"
    assert hands.do(Subscribe(TOPIC, "default/q9")) == TopicDefined(created=False)
    for at in range(63):
        hands.do(DefineTopic(f"default/t{at}"))
        hands.do(Subscribe(f"default/t{at}", "default/q0"))
    hands.do(DefineTopic("default/last"))
    assert hands.do(Subscribe("default/last", "default/q0")).reason == "too_many_subscriptions"


def test_topics_are_bounded(hands: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topics, "TOPICS_MAX", 1)
    hands.do(DefineTopic(TOPIC))
    assert hands.do(DefineTopic("default/more")).reason == "too_many_topics"
    hands.do(DeleteTopic(TOPIC))
    assert hands.do(DefineTopic("default/more")) == TopicDefined(created=True)


def test_a_retried_publish_repeats_its_first_reply(news: Hands) -> None:
    command = Publish(TOPIC, [colored("red", "blue")], Request("r", 1_000))
    assert news.do(command) == Published([2, 1], [])
    assert news.do(command) == Published([2, 1], [], repeated=True)
    news.wall_ms += 1_000
    assert news.do(Expire()).forgotten == 1
    assert news.do(command) == Published([2, 1], [])
    assert news.info(A).ready == 4


def test_a_deleted_topic_takes_its_subscriptions_and_requests_along(news: Hands) -> None:
    command = Publish(TOPIC, [colored("red")], Request("r", 60_000))
    news.do(command)
    assert news.do(DeleteTopic(TOPIC)) == TopicDeleted(2)
    assert news.info(A).ready == 1
    news.do(DefineTopic(TOPIC))
    assert news.do(command) == Published([0], [])
    news.do(Expire())
    assert len(news.keys(keys.REQUEST)) == 1
    assert news.keys(keys.SUBSCRIPTION) == news.keys(keys.DELETED) == []


def test_a_deleted_queue_takes_its_subscriptions_along(news: Hands) -> None:
    news.do(DeleteQueue(A))
    assert [key for key, _ in news.machine.view().subscriptions(TOPIC)] == [B]
    assert news.do(Publish(TOPIC, [colored("red", "blue")])) == Published([1, 0], [])
    assert news.info(A) is None


def test_unsubscribe(news: Hands) -> None:
    assert news.do(Unsubscribe(TOPIC, A)) == TopicDeleted(1)
    assert news.do(Publish(TOPIC, [colored("red")])) == Published([1], [])
    assert news.machine.view().subscription(TOPIC, A) is None


def test_topics_are_listed_in_pages(hands: Hands) -> None:
    for name in ("default/a", "default/ab", "default/b", "other/a"):
        hands.do(DefineTopic(name))
    view = hands.machine.view()
    page, cursor = view.topics("default", limit=2)
    assert ([topic.key for topic in page], cursor) == (["default/a", "default/ab"], "ab")
    page, cursor = view.topics("default", limit=2, cursor=cursor)
    assert ([topic.key for topic in page], cursor) == (["default/b"], None)
    assert [topic.key for topic in view.topics("default", "ab")[0]] == ["default/ab"]


def test_names_that_begin_alike_are_kept_apart(hands: Hands) -> None:
    for topic in ("default/a", "default/ab"):
        hands.do(DefineTopic(topic))
        hands.do(Subscribe(topic, topic))
    hands.do(DeleteQueue("default/a"))
    hands.do(DeleteTopic("default/a"))
    assert [key for key, _ in hands.machine.view().subscriptions("default/ab")] == ["default/ab"]


@pytest.mark.parametrize(
    "command",
    [DefineTopic(TOPIC), DeleteTopic(TOPIC), Subscribe(TOPIC, A), Unsubscribe(TOPIC, A)],
)
def test_topic_commands_are_as_they_were_written(command: Command) -> None:
    assert decode(encode(command)) == command
    assert not grows(encode(command))


def test_a_publish_grows_the_tables() -> None:
    assert grows(encode(Publish(TOPIC, [Part(0, None, blob(b"x"))])))
