"""What a customer may do with a job in each state, and what becomes of the attempt that holds it."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID, uuid4

import psycopg
import pytest
from alembic import command
from sqlalchemy import text, update
from sqlalchemy.orm import Session

from bpt_store import jobs, references, resuming, scheduling
from bpt_store.db import Database
from bpt_store.errors import Conflict, LeaseLost, LimitReached, NotFound
from bpt_store.jobs import Fence
from bpt_store.models import Job, JobKind, JobState
from bpt_store.settings import Settings
from migrations.config import alembic_config

LEASE = 30.0
Q, R, C = JobState.QUEUED, JobState.RUNNING, JobState.CANCELLED
PAUSING, PAUSED, CANCELLING = JobState.PAUSING, JobState.PAUSED, JobState.CANCELLING
SUCCEEDED, FAILED = JobState.SUCCEEDED, JobState.FAILED


@pytest.fixture
def create(database: Database, customer_id: UUID) -> Callable[[], UUID]:
    def make(kind: JobKind = JobKind.TUNE) -> UUID:
        with database.customer(customer_id) as session:
            return jobs.create(session, customer_id, kind, dataset_id=uuid4(), dataset_version=1, payload={}).id

    return make


def claim(database: Database, lease_seconds: float = LEASE) -> Fence:
    with database.system() as session:
        job = jobs.claim(session, JobKind.TUNE, "a worker", lease_seconds)
    assert job is not None
    return jobs.fence_of(job)


def show(database: Database, fence: Fence) -> Job:
    with database.customer(fence.customer_id) as session:
        return jobs.get(session, fence.job_id, JobKind.TUNE)


def crash(session: Session, fence: Fence, **given: object) -> None:
    jobs.crash(session, fence, "trainer_crashed", "it died", max_failures=3, backoff_seconds=0, **given)  # type: ignore[arg-type]


def lose_lease(database: Database, fence: Fence, max_failures: int = 3) -> None:
    with database.system() as session:
        session.execute(update(Job).where(Job.id == fence.job_id).values(lease_expires_at=text("claimed_at")))
        assert jobs.requeue_expired(session, max_failures=max_failures, backoff_seconds=0) == 1


def doomed(database: Database) -> list[str]:
    with database.system() as session:
        return list(session.scalars(text("SELECT key FROM doomed_objects ORDER BY id")))


@pytest.fixture
def bring(database: Database, customer_id: UUID, create: Callable[[], UUID]) -> Callable[[JobState], Fence]:
    """A job in the state -> the fence of its attempt, of none where it was never claimed."""

    def bring(state: JobState) -> Fence:
        job_id = create()
        if state is Q:
            return Fence(customer_id, job_id, 0)
        if state is PAUSED:
            with database.customer(customer_id) as session:
                jobs.pause(session, job_id)
            return Fence(customer_id, job_id, 0)
        fence = claim(database)
        with database.customer(customer_id) as session:
            if state is PAUSING:
                jobs.pause(session, job_id)
            elif state in (CANCELLING, C):
                jobs.cancel(session, job_id, JobKind.TUNE)
            elif state is SUCCEEDED:
                jobs.succeed(session, fence, {})
            elif state is FAILED:
                jobs.fail(session, fence, "diverged", "no number")
        if state is C:
            with database.customer(customer_id) as session:
                jobs.give_back(session, fence, "stopped")
        assert show(database, fence).state is state
        return fence

    return bring


# The state it is in -> what comes of each wish: a state, or the code of a refusal.
WISHES: dict[JobState, dict[str, JobState | str]] = {
    Q: {"pause": PAUSED, "resume": Q, "cancel": C, "retry": "job_unfinished"},
    R: {"pause": PAUSING, "resume": R, "cancel": CANCELLING, "retry": "job_unfinished"},
    PAUSING: {"pause": PAUSING, "resume": "job_pausing", "cancel": CANCELLING, "retry": "job_unfinished"},
    PAUSED: {"pause": PAUSED, "resume": Q, "cancel": C, "retry": "job_unfinished"},
    CANCELLING: {
        **{"pause": "job_cancelling", "resume": "job_cancelling"},
        **{"cancel": CANCELLING, "retry": "job_unfinished"},
    },
    SUCCEEDED: {"pause": "job_terminal", "resume": "job_terminal", "cancel": "job_terminal", "retry": "job_succeeded"},
    FAILED: {"pause": "job_terminal", "resume": "job_terminal", "cancel": "job_terminal", "retry": Q},
    C: {"pause": "job_terminal", "resume": "job_terminal", "cancel": "job_terminal", "retry": Q},
}
VERBS: dict[str, Callable[[Session, UUID], Job]] = {
    "pause": jobs.pause,
    "resume": jobs.resume,
    "retry": jobs.retry,
    "cancel": lambda session, job_id: jobs.cancel(session, job_id, JobKind.TUNE),
}


def test_the_table_of_wishes_is_whole() -> None:
    assert set(WISHES) == set(JobState)
    assert all(set(outcomes) == set(VERBS) for outcomes in WISHES.values())


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("state", WISHES)
def test_a_wish_is_granted_or_refused_by_the_state(
    database: Database, bring: Callable[[JobState], Fence], state: JobState, verb: str
) -> None:
    fence, outcome = bring(state), WISHES[state][verb]
    before = show(database, fence)
    refused = None
    try:
        with database.customer(fence.customer_id) as session:
            VERBS[verb](session, fence.job_id)
    except Conflict as conflict:
        refused = conflict.code
    after = show(database, fence)
    if isinstance(outcome, JobState):
        assert (refused, after.state) == (None, outcome)
    else:
        assert (refused, after.state) == (outcome, state)
    # What changes nothing tells nothing, and no wish makes a gap.
    assert after.last_event == before.last_event + (after.state is not state)
    assert after.attempt == before.attempt


# The state -> what comes of each end of the attempt that holds the job, and how many failures are counted.
ENDS: dict[JobState, dict[str, tuple[JobState, int]]] = {
    R: {"give back": (Q, 0), "crash": (Q, 1), "lose lease": (Q, 1), "succeed": (SUCCEEDED, 0), "fail": (FAILED, 0)},
    PAUSING: {
        **{"give back": (PAUSED, 0), "crash": (PAUSED, 0), "lose lease": (PAUSED, 0)},
        **{"succeed": (SUCCEEDED, 0), "fail": (FAILED, 0)},
    },
    CANCELLING: {
        **{"give back": (C, 0), "crash": (C, 0), "lose lease": (C, 0)},
        **{"succeed": (SUCCEEDED, 0), "fail": (FAILED, 0)},
    },
}


def test_the_table_of_ends_is_whole() -> None:
    assert set(ENDS) == {state for state in JobState if state.is_held}


@pytest.mark.parametrize("end", ENDS[R])
@pytest.mark.parametrize("state", ENDS)
def test_an_attempt_ends_as_was_wished_and_its_time_is_counted(
    database: Database, bring: Callable[[JobState], Fence], state: JobState, end: str
) -> None:
    fence = bring(state)
    began_before(database, fence, seconds=20)
    if end == "lose lease":
        with database.system() as session:  # it was silent for a long time, of which 12 seconds were under a lease
            session.execute(
                text("UPDATE jobs SET lease_expires_at = claimed_at + interval '12 s' WHERE id = :id"),
                {"id": fence.job_id},
            )
            assert jobs.requeue_expired(session, max_failures=3, backoff_seconds=0) == 1
    else:
        with database.customer(fence.customer_id) as session:
            if end == "give back":
                jobs.give_back(session, fence, "stopped")
            elif end == "crash":
                crash(session, fence)
            elif end == "succeed":
                jobs.succeed(session, fence, {})
            else:
                jobs.fail(session, fence, "diverged", "no number")
    after = show(database, fence)
    assert (after.state, after.failures) == ENDS[state][end]
    assert (after.claimed_at, after.lease_expires_at) == (None, None)
    assert after.worked_seconds == pytest.approx(12 if end == "lose lease" else 20, abs=2)
    with database.customer(fence.customer_id) as session:
        assert session.scalar(text("SELECT tuning_seconds FROM usage_days")) == after.worked_seconds
    with pytest.raises(LeaseLost), database.customer(fence.customer_id) as session:
        jobs.renew(session, fence, LEASE)


def began_before(database: Database, fence: Fence, seconds: float) -> None:
    with database.system() as session:
        session.execute(
            text("UPDATE jobs SET claimed_at = claimed_at - make_interval(secs => :s) WHERE id = :id"),
            {"s": seconds, "id": fence.job_id},
        )


def test_a_heartbeat_shows_the_wish_to_pause(database: Database, bring: Callable[[JobState], Fence]) -> None:
    fence = bring(PAUSING)
    with database.customer(fence.customer_id) as session:
        assert jobs.renew(session, fence, LEASE) is PAUSING


def test_a_paused_job_is_nobodys_to_claim_or_to_ring_for_and_keeps_its_checkpoint(
    database: Database, bring: Callable[[JobState], Fence]
) -> None:
    fence = bring(R)
    with database.customer(fence.customer_id) as session:
        resuming.keep_checkpoint(session, fence, {"key": "k"})
        jobs.pause(session, fence.job_id)
        jobs.give_back(session, fence, "stopped")
    with database.system() as session:
        assert jobs.claim(session, JobKind.TUNE, "w", LEASE) is None
        assert scheduling.kinds_waiting(session, 0) == []
        assert jobs.requeue_expired(session, max_failures=3, backoff_seconds=0) == 0
    with database.customer(fence.customer_id) as session:
        jobs.resume(session, fence.job_id)
    again = claim(database)
    assert (again.job_id, again.attempt) == (fence.job_id, 2)
    assert show(database, fence).checkpoint == {"key": "k"}
    assert doomed(database) == []


def test_a_resumed_job_has_waited_since_then(database: Database, bring: Callable[[JobState], Fence]) -> None:
    fence = bring(PAUSED)
    with database.system() as session:
        session.execute(text("UPDATE jobs SET available_at = now() - interval '1 h'"))
    with database.customer(fence.customer_id) as session:
        jobs.resume(session, fence.job_id)
    with database.system() as session:
        (depth,) = scheduling.depths(session)
    assert depth.oldest_wait_seconds is not None
    assert depth.oldest_wait_seconds < 60


def test_paused_jobs_count_as_unfinished(
    database: Database, customer_id: UUID, bring: Callable[[JobState], Fence]
) -> None:
    bring(PAUSED)
    failed = bring(FAILED)
    asks: list[Callable[[Session], object]] = [
        lambda session: jobs.create(
            session, customer_id, JobKind.TUNE, dataset_id=uuid4(), dataset_version=1, payload={}, unfinished_limit=1
        ),
        lambda session: jobs.retry(session, failed.job_id, unfinished_limit=1),
    ]
    for ask in asks:
        with pytest.raises(LimitReached) as caught, database.customer(customer_id) as session:
            ask(session)
        assert caught.value.code == "queue_limit"
    with database.customer(customer_id) as session:
        assert jobs.retry(session, failed.job_id, unfinished_limit=2).state is Q


@pytest.mark.parametrize("kind", [JobKind.INGEST, JobKind.BATCH_PREDICT])
def test_only_tuning_jobs_are_paused_resumed_and_tried_again(
    database: Database, customer_id: UUID, create: Callable[[JobKind], UUID], kind: JobKind
) -> None:
    job_id = create(kind)
    for verb in (jobs.pause, jobs.resume, jobs.retry):
        with pytest.raises(NotFound), database.customer(customer_id) as session:
            verb(session, job_id)


def test_time_is_summed_over_attempts_and_neither_pauses_nor_waiting_count(
    database: Database, bring: Callable[[JobState], Fence]
) -> None:
    fence = bring(R)
    for seconds in (10.0, 20.0):
        began_before(database, fence, seconds)
        with database.customer(fence.customer_id) as session:
            jobs.pause(session, fence.job_id)
            jobs.give_back(session, fence, "stopped")
        with database.system() as session:  # a pause of an hour
            session.execute(text("UPDATE jobs SET available_at = available_at - interval '1 h'"))
        with database.customer(fence.customer_id) as session:
            jobs.resume(session, fence.job_id)
        fence = claim(database)
    began_before(database, fence, 30)
    with database.customer(fence.customer_id) as session:
        jobs.fail(session, fence, "c", "d")
    assert show(database, fence).worked_seconds == pytest.approx(60, abs=3)
    with database.customer(fence.customer_id) as session:
        assert jobs.retry(session, fence.job_id).worked_seconds == pytest.approx(60, abs=3)


WRITES: list[Callable[[Session, Fence], object]] = [
    lambda session, fence: jobs.give_back(session, fence, "late"),
    lambda session, fence: crash(session, fence),
    lambda session, fence: jobs.fail(session, fence, "c", "late"),
    lambda session, fence: jobs.succeed(session, fence, {}),
    lambda session, fence: jobs.cancelled(session, fence),
    lambda session, fence: resuming.keep_checkpoint(session, fence, {"key": "late"}),
    lambda session, fence: jobs.renew(session, fence, LEASE),
]


def test_a_replaced_attempt_can_neither_pause_nor_settle_nor_requeue(
    database: Database, bring: Callable[[JobState], Fence]
) -> None:
    """Replaced after a lost lease, after a pause, and after the job has ended and was tried again."""
    late = bring(R)
    lose_lease(database, late)
    second = claim(database)
    with database.customer(late.customer_id) as session:
        jobs.pause(session, late.job_id)
        jobs.give_back(session, second, "stopped")
        jobs.resume(session, late.job_id)
    third = claim(database)
    with database.customer(late.customer_id) as session:
        jobs.fail(session, third, "c", "d")
        jobs.retry(session, late.job_id)

    def assert_all_refused(*fences: Fence) -> None:
        before = show(database, late)
        for fence in fences:
            for write in WRITES:
                with pytest.raises(LeaseLost), database.customer(late.customer_id) as session:
                    write(session, fence)
        after = show(database, late)
        facts = ("state", "attempt", "failures", "last_event", "worked_seconds", "checkpoint", "claimed_at")
        assert [getattr(after, name) for name in facts] == [getattr(before, name) for name in facts]

    assert_all_refused(late, second, third)
    fourth = claim(database)
    assert fourth.attempt == 4
    assert_all_refused(late, second, third)


@pytest.mark.parametrize("end", [FAILED, C])
def test_a_job_tried_again_begins_with_no_failure_from_its_last_checkpoint(
    database: Database, bring: Callable[[JobState], Fence], end: JobState
) -> None:
    fence = bring(R)
    with database.customer(fence.customer_id) as session:
        resuming.keep_checkpoint(session, fence, {"key": "k"})
        crash(session, fence, log=["oh"])
    fence = claim(database)
    with database.customer(fence.customer_id) as session:
        if end is FAILED:
            jobs.fail(session, fence, "c", "d", log=["no"])
        else:
            jobs.cancel(session, fence.job_id, JobKind.TUNE)
            jobs.give_back(session, fence, "stopped")
    ended = show(database, fence)
    assert (ended.state, ended.failures, doomed(database)) == (end, 1, [])
    assert ended.finished_at is not None
    with database.customer(fence.customer_id) as session:
        jobs.retry(session, fence.job_id)
    again = show(database, fence)
    assert (again.state, again.failures, again.error, again.finished_at, again.log_tail) == (Q, 0, None, None, None)
    assert again.checkpoint == {"key": "k"}
    assert claim(database).attempt == 3
    with database.customer(fence.customer_id) as session:
        events = jobs.events_after(session, fence.job_id, 0, 100)
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    assert [event.data.get("from") for event in events][-2:] == [end, None]


@pytest.mark.parametrize("end", [FAILED, C])
def test_the_checkpoint_of_a_job_that_failed_is_given_up_after_a_while(
    database: Database, bring: Callable[[JobState], Fence], end: JobState
) -> None:
    def ended() -> Fence:
        fence = bring(R)
        with database.customer(fence.customer_id) as session:
            resuming.keep_checkpoint(session, fence, {"key": "k"})
            if end is FAILED:
                jobs.fail(session, fence, "c", "d")
            else:
                jobs.cancel(session, fence.job_id, JobKind.TUNE)
                jobs.give_back(session, fence, "stopped")
        return fence

    old, recent, tried_again, paused = ended(), ended(), ended(), bring(PAUSED)
    with database.system() as session:
        session.execute(
            text("UPDATE jobs SET finished_at = finished_at - interval '72 h' WHERE id <> :id"), {"id": recent.job_id}
        )
        session.execute(update(Job).where(Job.id == paused.job_id).values(checkpoint={"key": "p"}))
    with database.customer(old.customer_id) as session:
        jobs.retry(session, tried_again.job_id)
    for given_up in (1, 0):
        with database.system() as session:
            assert jobs.give_up_checkpoints(session, 72) == given_up
    # Not all below the job's prefix: what another attempt will store must stay.
    assert doomed(database) == [f"jobs/{old.job_id.hex}/1/"]
    kept = [show(database, fence).checkpoint for fence in (old, recent, tried_again, paused)]
    assert kept == [None, {"key": "k"}, {"key": "k"}, {"key": "p"}]
    with database.customer(old.customer_id) as session:
        assert jobs.retry(session, old.job_id).state is Q


def test_deleting_a_job_that_failed_gives_its_checkpoint_up_at_once(
    database: Database, bring: Callable[[JobState], Fence]
) -> None:
    fence = bring(R)
    with database.customer(fence.customer_id) as session:
        resuming.keep_checkpoint(session, fence, {"key": "k"})
        jobs.fail(session, fence, "c", "d")
        jobs.delete(session, fence.job_id, JobKind.TUNE)
    assert f"jobs/{fence.job_id.hex}/" in doomed(database)


def test_a_failure_shows_what_was_said_last_also_where_the_last_attempt_only_fell_silent(
    database: Database, bring: Callable[[JobState], Fence]
) -> None:
    fence = bring(R)
    with database.customer(fence.customer_id) as session:
        crash(session, fence, log=["one", "two"])
    lose_lease(database, claim(database), max_failures=2)
    job = show(database, fence)
    assert job.error is not None
    assert (job.error["code"], job.error["log"]) == ("worker_lost", ["one", "two"])
    assert "one" not in job.error["detail"]
    other = bring(R)
    with database.customer(other.customer_id) as session:
        crash(session, other, log=["of another attempt"])
    other = claim(database)
    with database.customer(other.customer_id) as session:
        jobs.fail(session, other, "diverged", "no number")
    assert show(database, other).error == {"code": "diverged", "detail": "no number"}


def test_speed_is_not_measured_by_a_job_that_its_budget_has_stopped(database: Database, customer_id: UUID) -> None:
    for stopped_by in (None, "budget"):
        with database.customer(customer_id) as session:
            payload = {"flops": 10.0 if stopped_by is None else 1e12}
            jobs.create(session, customer_id, JobKind.TUNE, dataset_id=uuid4(), dataset_version=1, payload=payload)
        fence = claim(database)
        with database.customer(customer_id) as session:
            jobs.succeed(session, fence, {"stopped_by": stopped_by})
    with database.customer(customer_id) as session:
        speed = jobs.measured_flops_per_second(session)
    assert speed is not None
    assert speed <= 100


def test_a_backup_holds_checkpoints_that_are_kept_and_no_other(
    database: Database, settings: Settings, bring: Callable[[JobState], Fence]
) -> None:
    failed, succeeded, given_up = bring(R), bring(R), bring(R)
    for fence in (failed, succeeded, given_up):
        with database.customer(fence.customer_id) as session:
            resuming.keep_checkpoint(session, fence, {"key": str(fence.job_id), "sha256": "ab", "bytes": 1})
            if fence is succeeded:
                jobs.succeed(session, fence, {})
            else:
                jobs.fail(session, fence, "c", "d")
    with database.system() as session:
        session.execute(
            text("UPDATE jobs SET finished_at = finished_at - interval '1 h' WHERE id = :id"), {"id": given_up.job_id}
        )
        jobs.give_up_checkpoints(session, 1)
    with database.system() as session:
        connection = session.connection().connection.driver_connection
        assert isinstance(connection, psycopg.Connection)
        assert [each.key for each in references.referred(connection)] == [str(failed.job_id)]


def test_a_service_of_before_does_what_was_paused_after_all(
    database: Database, settings: Settings, bring: Callable[[JobState], Fence]
) -> None:
    paused, pausing = bring(PAUSED), bring(PAUSING)
    assert settings.owner_database_url is not None
    config = alembic_config(settings.owner_database_url.get_secret_value())
    command.downgrade(config, "0006")
    with database.system() as session:
        session.execute(text('UPDATE jobs SET checkpoint = \'{"key": "k"}\''))
        session.execute(
            text("INSERT INTO jobs (customer_id, kind, state, checkpoint) VALUES (:id, 'tune', 'failed', :given_up)"),
            {"id": paused.customer_id, "given_up": '{"key": "given up"}'},
        )
    command.upgrade(config, "head")
    assert (show(database, paused).state, show(database, pausing).state) == (Q, R)
    assert claim(database).job_id == paused.job_id
    with database.system() as session:  # what was given up is no longer named
        kept = session.scalars(text("SELECT checkpoint ->> 'key' FROM jobs ORDER BY id")).all()
    assert [*kept] == ["k", "k", None]
