"""A cluster's facts: the user's file, what is refused before any job, what jobs ask for, and what they are called."""

import asyncio
import contextlib
import dataclasses
import logging
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from pipeline.reading import read_dataclass
from pipeline.site import GROWS, OF_SNAKEMAKE_MB, WARNING_SECONDS, Pool, Site, Stage, name_of_jobs

ROOT = Path(__file__).parents[2]
TRAINS, JUDGES = SimpleNamespace(data="d.json"), SimpleNamespace(model="m")  # inputs of rules


@pytest.fixture
def user(tmp_path, monkeypatch):
    """Writes the user's file."""
    monkeypatch.setenv("GODE_SITE", str(tmp_path / "my-site.yaml"))
    return (tmp_path / "my-site.yaml").write_text


def said(call) -> str:
    """The one line that ends the program."""
    with pytest.raises(SystemExit) as end:
        call()
    text = end.value.code
    assert isinstance(text, str)  # so that the exit code is 1
    assert text.startswith("error: ")
    assert "\n" not in text
    return text


def asked(site: Site, key: str, attempt: int = 1, rule: object = TRAINS):
    """A resource as Snakemake makes it."""
    return eval(site.resources[key], {"attempt": attempt, "input": rule, "threads": 1})  # noqa: S307 - of our own text


# ---------------------------------------------------------------------- the user's file


def test_without_a_file_the_cluster_decides(tmp_path, monkeypatch):
    monkeypatch.delenv("GODE_SITE", raising=False)
    monkeypatch.chdir(tmp_path)
    assert Site.of_user() == Site()
    (tmp_path / "cluster/slurm").mkdir(parents=True)
    (tmp_path / "cluster/slurm/site.yaml").write_text("partition: gpu\ntrain: {minutes: 9, memory_mb: 700}\n")
    assert Site.of_user() == Site(partition="gpu", train=Stage(9, 700))


@pytest.mark.parametrize("text", ["", "# nothing yet\n"])
def test_an_empty_file_is_one_without_facts(user, text):
    user(text)
    assert Site.of_user() == Site()


def test_a_name_that_yaml_takes_for_a_number_is_a_name(user):
    user("account: 12345\n")
    assert Site.of_user().account == "12345"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("partitoin: gpu", "unknown key `partitoin`. Did you mean `partition`?"),
        ("train: {minuts: 5, memory_mb: 400}", "train: unknown key `minuts`. Did you mean `minutes`?"),
        ("most_jobs: many", "most_jobs: must be a whole number, got 'many'"),
        ("train: {minutes: 0, memory_mb: 400}", "minutes must be at least 1, got 0"),
        ("train: {minutes: 5}", "train: `memory_mb` is missing"),
        ("evaluate: {minutes: 5, memory_mb: 4}", "memory_mb must be at least 100, got 4"),
        ("most_jobs: 0", "most_jobs must be at least 1"),
        ("poll_seconds: 0", "poll_seconds must be at least 1"),
        ("most_poll_seconds: 19", "most_poll_seconds must be at least poll_seconds, got 19"),
        ("most_minutes: 0", "most_minutes must be at least 1"),
        ("- gpu", "must be a mapping"),
        ("gpu", "must be a mapping"),
        ("a: b: c", "mapping values are not allowed here"),
        ("account: \x00", "special characters are not allowed"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line_that_names_it(user, text, line):
    user(text)
    found = said(Site.of_user)
    assert line in found
    assert "my-site.yaml" in found


def test_a_place_without_a_file_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("GODE_SITE", str(tmp_path / "nowhere.yaml"))
    assert "nowhere.yaml: no such file, and GODE_SITE names it" in said(Site.of_user)
    monkeypatch.setenv("GODE_SITE", str(tmp_path))
    assert "Is a directory" in said(Site.of_user)


def test_the_template_is_a_site_with_and_without_its_comments(stand_in, user):
    text = (ROOT / "cluster/slurm/site.template.yaml").read_text()
    assert read_dataclass(Site, yaml.safe_load(text), "template") == Site()
    active = re.sub(r"^# (\w+: )", r"\1", text, flags=re.MULTILINE)
    user(active)
    site = Site.of_user()
    assert {name for name, value in vars(site).items() if value is None} == set()  # each fact is shown
    assert set(yaml.safe_load(active)) == set(vars(site))
    parts = {fact.name for part in (Stage, Pool) for fact in dataclasses.fields(part)}
    assert parts <= set(re.findall(r"(\w+):", text.partition("The first attempt")[2]))
    stand_in.set("partitions", {site.partition: "infinite"})
    stand_in.set("accounts", [site.account])
    site.check()
    assert asked(site, "slurm_extra").endswith("--mail-type=FAIL")


# ---------------------------------------------------------------------- what is refused


def test_a_site_that_fits_is_silent(stand_in, capsys):
    stand_in.set("accounts", ["Physics"])
    Site().check()
    Site(partition="low,main", account="physics").check()
    Site(account="PHYSICS").check()
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("no_slurm")
def test_no_slurm_on_the_path():
    line = said(Site().check)
    assert "not on the path" in line
    assert "--profile cluster/local" in line


def test_a_partition_that_does_not_exist(stand_in, user):
    user("partition: mian")
    line = said(Site.of_user().check)
    assert "partition: `mian` is none here. Did you mean `main`? There are: low, main." in line
    assert "my-site.yaml" in line
    assert "`gpu` is none here. There are" in said(Site(partition="main,gpu").check)
    assert "` low` is none here" in said(Site(partition="main, low").check)  # sbatch takes no spaces either


@pytest.mark.parametrize("rule", ["train", "evaluate", "search", "fleet"])
def test_a_partition_of_one_rule_that_does_not_exist(stand_in, user, rule):
    user(f"partition: main\n{rule}: {{minutes: 5, memory_mb: 2000, partition: lwo}}")
    line = said(Site.of_user().check)
    assert f"my-site.yaml: {rule}: partition: `lwo` is none here. Did you mean `low`? There are: low, main." in line
    user(f"{rule}: {{minutes: 5, memory_mb: 2000, partition: ''}}")
    assert f"{rule}: partition: `` is none here." in said(Site.of_user().check)


def test_an_account_that_is_refused(stand_in):
    assert "no database of accounts answers here; leave it out" in said(Site(account="physics").check)
    stand_in.set("accounts", ["chem", "bio"])
    assert "account: `physics` is not yours. Yours: bio, chem." in said(Site(account="physics").check)


def test_a_controller_that_is_away(stand_in):
    stand_in.fail("sinfo", "slurm_load_partitions: Unable to contact slurm controller\n")
    assert "SLURM does not answer here (`sinfo` failed: slurm_load_partitions" in said(Site().check)


def test_a_controller_that_goes_between_two_questions(stand_in):
    site = Site(partition="main")
    stand_in.fail("sinfo", "gone\n")
    assert "SLURM does not answer here" in said(lambda: site.resources)


def test_the_longest_time_is_asked_for_once(stand_in):
    site = Site(partition="main")
    assert site.resources
    assert site.resources_of_pools
    assert len(stand_in.calls("sinfo")) == 1


def test_the_executor_is_told_once_how_long_squeue_remembers(stand_in, monkeypatch):
    """So that an outage does not turn it to sacct, for good where there is no accounting."""
    executor = installed(monkeypatch)
    Site(poll_seconds=100).ask_squeue_alone()
    asked_for = len(stand_in.calls("scontrol"))
    stand_in.fail("scontrol", "Unable to contact slurm controller")
    assert executor.get_min_job_age() == 300
    assert len(stand_in.calls("scontrol")) == asked_for > 0


@pytest.mark.parametrize("age", [15, 29, 30])
def test_a_site_that_forgets_jobs_before_they_are_looked_at(stand_in, monkeypatch, age):
    stand_in.set("age", age)
    installed(monkeypatch)
    line = said(Site(poll_seconds=age // 3 + 1).ask_squeue_alone)
    assert f"poll_seconds must be at most {age // 3}: SLURM forgets a job {age} s after" in line
    Site(poll_seconds=age // 3).ask_squeue_alone()


def test_a_site_that_forgets_jobs_at_once_is_refused_whatever_is_written(stand_in, monkeypatch):
    """No look comes within 5 s of the one before it."""
    stand_in.set("age", 14)
    installed(monkeypatch)
    line = said(Site(poll_seconds=1).ask_squeue_alone)
    assert "SLURM forgets a job 14 s after its end (MinJobAge), and 15 s are needed: ask those who run the" in line


@pytest.mark.parametrize(("age", "longest"), [(300, 100), (120, 40), (30, 10), (0, 180), (None, 100)])
def test_looks_at_a_quiet_queue_never_lie_farther_apart_than_a_third_of_what_squeue_remembers(
    stand_in, monkeypatch, age, longest
):
    """The executor waits longer after each look that found nothing new. 0: nothing is forgotten."""
    stand_in.set("age", age)
    executor = installed(monkeypatch)
    if age is None:
        stand_in.fail("scontrol", "Unable to contact slurm controller")
    Site(poll_seconds=10).ask_squeue_alone()
    stand_in.add("7", name="run")
    waits = quiet_looks(executor, 20)
    assert waits[0] == min(20, longest)
    assert max(waits) == waits[-1] == longest


def test_looks_at_a_quiet_queue_lie_no_farther_apart_than_the_user_wants(stand_in, monkeypatch):
    executor = installed(monkeypatch)
    Site(poll_seconds=10, most_poll_seconds=30).ask_squeue_alone()
    stand_in.add("7", name="run")
    assert quiet_looks(executor, 5) == [20, 30, 30, 30, 30]


def test_the_executor_sees_all_jobs_whatever_the_user_likes_to_see(stand_in, monkeypatch):
    installed(monkeypatch)
    monkeypatch.setenv("SQUEUE_PARTITION", "low")
    monkeypatch.setenv("SBATCH_PARTITION", "low")
    Site().ask_squeue_alone()
    assert "SQUEUE_PARTITION" not in os.environ
    assert "SBATCH_PARTITION" in os.environ


def installed(monkeypatch):
    """SLURM's executor, which is as before after the test."""
    executor = pytest.importorskip("snakemake_executor_plugin_slurm")
    interval = "next_seconds_between_status_checks"
    monkeypatch.setattr(executor, "get_min_job_age", executor.get_min_job_age)
    monkeypatch.setattr(executor.Executor, interval, getattr(executor.Executor, interval))
    return executor


def quiet_looks(executor, number: int) -> list[float]:
    """Seconds that the executor would wait after each of so many looks that find nothing new, by its own code."""
    found = object.__new__(executor.Executor)
    settings = SimpleNamespace(init_seconds_before_status_checks=10, status_attempts=1, status_command="squeue")
    found.workflow = SimpleNamespace(
        executor_settings=settings, remote_execution_settings=SimpleNamespace(seconds_between_status_checks=10)
    )
    found.logger, found.run_uuid, found.status_rate_limiter = logging.getLogger(), "run", contextlib.AsyncExitStack()
    found._next_seconds_between_status_checks = found._status_query_min_seconds = None
    found._status_query_calls = found._status_query_total_seconds = found._status_query_max_seconds = 0
    found._status_query_failures, found._status_query_cycle_rows = 0, []
    job = SimpleNamespace(external_jobid="7", aux={})
    waits = []

    async def look() -> None:
        for _ in range(number):
            assert [each async for each in found.check_active_jobs([job])] == [job]
            waits.append(found.next_seconds_between_status_checks)

    asyncio.run(look())
    return waits


# ---------------------------------------------------------------------- what jobs ask for


def test_a_job_that_slurm_would_not_take_is_one_line_before_any_is_submitted(stand_in):
    """Of what this cannot know: a feature, a GPU, an option."""
    Site(constraint="a100").check()
    stand_in.set("refused", "Invalid feature specification")
    assert "would not take a job like this: `sbatch` failed: allocation failure: Invalid feature" in said(
        Site(constraint="a100").check
    )


def test_memory_stays_below_what_nodes_have(stand_in):
    site = Site(train=Stage(10, 2000), evaluate=Stage(10, 1000), most_memory_mb=3000)
    assert [asked(site, "mem_mb", attempt) for attempt in (1, 2, 3)] == [2000 + OF_SNAKEMAKE_MB, 3000, 3000]
    assert asked(site, "mem_mb", 2, JUDGES) == 2000 + OF_SNAKEMAKE_MB
    with pytest.raises(ValueError, match="most_memory_mb"):
        Site(most_memory_mb=50)


def test_time_and_memory_grow_with_the_attempt(stand_in):
    site = Site(train=Stage(60, 2000), evaluate=Stage(10, 1000))
    for attempt in range(1, GROWS + 3):
        times = min(attempt, GROWS)
        assert asked(site, "runtime", attempt) == 60 * times
        assert asked(site, "runtime", attempt, JUDGES) == 10 * times
        assert asked(site, "mem_mb", attempt) == 2000 * times + OF_SNAKEMAKE_MB
        assert asked(site, "mem_mb", attempt, JUDGES) == 1000 * times + OF_SNAKEMAKE_MB


def test_without_a_partition_the_limit_is_that_of_the_default(stand_in):
    stand_in.set("partitions", {"short": "1:00:00", "long": "7-00:00:00"})
    assert asked(Site(), "runtime", 9) == 60
    stand_in.set("partitions", {"any": "infinite", "short": "1:00:00"})
    assert asked(Site(train=Stage(60, 400)), "runtime", 9) == 60 * GROWS


def test_later_attempts_that_slurm_would_not_take_are_refused_before_the_first(stand_in, monkeypatch):
    """A node has 8 GB: the fourth attempt would ask for 16."""

    def too_much(options):
        (memory,) = (int(word.partition("=")[2]) for word in options if word.startswith("--mem="))
        return "Requested node configuration is not available" if memory > 8000 else None

    monkeypatch.setattr("pipeline.slurm.refusal", too_much)
    assert "up to 16500 MB, and SLURM would not take them; set most_memory_mb" in said(Site().check)
    Site(most_memory_mb=8000).check()


@pytest.mark.parametrize(
    ("facts", "longest"),
    [
        ({"partition": "main"}, 400),  # without a limit: as an attempt may grow
        ({"partition": "low"}, 150),
        ({"partition": "low,short,main"}, 90),  # it may start in any of them
        ({"partition": "low", "most_minutes": 120}, 120),
        ({"partition": "low", "most_minutes": 500}, 150),
        ({"most_minutes": 120}, 120),
        ({"partition": "tiny"}, 1),  # the executor takes 0 for no limit at all
    ],
)
def test_no_attempt_asks_for_more_than_it_may(stand_in, facts, longest):
    stand_in.set("partitions", {"main": "infinite", "low": "2:30:00", "short": "1:30:00", "tiny": "0:30"})
    site = Site(train=Stage(100, 400), **facts)
    assert [asked(site, "runtime", attempt) for attempt in (1, 9)] == [min(100, longest), longest]


@pytest.mark.parametrize(("minutes", "warned"), [(1, False), (2, False), (3, True), (120, True)])
def test_a_training_is_warned_only_where_it_leaves_time_to_work(stand_in, minutes, warned):
    """SLURM may send it a minute early."""
    stand_in.set("partitions", {"main": "infinite", "brief": f"{minutes}:00"})
    short = Stage(minutes, 400)
    for site in (
        Site(train=short, evaluate=Stage(500, 400)),
        Site(most_minutes=minutes),
        Site(train=Stage(500, 400, partition="brief")),
    ):
        assert (f"--signal=USR1@{WARNING_SECONDS}" in asked(site, "slurm_extra")) == warned
    for site in (Site(evaluate=short), Site(evaluate=Stage(500, 400, partition="brief"))):  # is no training's business
        assert f"--signal=USR1@{WARNING_SECONDS}" in asked(site, "slurm_extra")


@pytest.mark.usefixtures("stand_in")
def test_a_judgement_is_not_warned():
    """It has no checkpoint to write: the signal would end it, half a minute early or more."""
    same = Stage(500, 400)
    for site in (Site(), Site(train=same, evaluate=same)):
        assert asked(site, "slurm_extra", rule=JUDGES) == "--open-mode=append"


@pytest.mark.usefixtures("stand_in")
def test_what_is_not_said_is_not_asked_for():
    assert set(Site().resources) == {"runtime", "mem_mb", "slurm_extra"}
    assert asked(Site(), "slurm_extra").startswith("--open-mode=append ")  # a restart keeps the log before it
    assert Site().options == []


def test_what_is_said_is_asked_for_as_it_is(stand_in):
    words = {"account": "1234", "qos": "normal", "constraint": "a100&nv'link", "gres": "gpu:a100:1"}
    site = Site(partition="main", extra="--mail-type=FAIL", **words)
    found = {key: asked(site, key) for key in site.resources}
    assert found["slurm_partition"] == "main"
    assert found["slurm_account"] == "1234"
    assert [found[key] for key in ("qos", "constraint", "gres")] == ["normal", "a100&nv'link", "gpu:a100:1"]
    assert found["slurm_extra"].split()[-1] == "--mail-type=FAIL"
    assert site.options == ["--partition=main", "--account=1234", "--qos=normal", "--constraint=a100&nv'link"]


# ---------------------------------------------------------------------- where each rule goes, and with which GPUs

RULES = """
partition: main
gres: gpu:1
train: {minutes: 60, memory_mb: 4000, gres: 'gpu:a100:1'}
evaluate: {minutes: 60, memory_mb: 4000, partition: low, gres: none}
"""


@pytest.mark.usefixtures("stand_in")
def test_a_training_and_a_judgement_go_each_to_its_own_place(user):
    user(RULES)
    site = Site.of_user()
    assert [asked(site, "slurm_partition", rule=rule) for rule in (TRAINS, JUDGES)] == ["main", "low"]
    assert [asked(site, "gres", rule=rule) for rule in (TRAINS, JUDGES)] == ["gpu:a100:1", ""]  # none is asked for
    assert site.options[0] == "--partition=main"
    alone = Site(evaluate=Stage(5, 400, partition="low", gres="gpu:1"))  # the cluster decides where trainings go
    assert [asked(alone, "slurm_partition", rule=rule) for rule in (TRAINS, JUDGES)] == ["", "low"]
    assert [asked(alone, "gres", rule=rule) for rule in (TRAINS, JUDGES)] == ["", "gpu:1"]
    assert alone.options == []
    assert Site(train=Stage(5, 400, partition="low")).options == ["--partition=low"]


@pytest.mark.usefixtures("stand_in")
def test_what_no_rule_says_is_the_sites():
    site = Site(partition="main", gres="gpu:1", evaluate=Stage(5, 400))
    for rule in (TRAINS, JUDGES):
        assert (asked(site, "slurm_partition", rule=rule), asked(site, "gres", rule=rule)) == ("main", "gpu:1")


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("site", [Site(gres="none"), Site(train=Stage(5, 400, gres="none"))])
def test_no_gpu_at_all_is_not_asked_for(site):
    assert "gres" not in site.resources


@pytest.mark.parametrize(
    ("train", "evaluate", "longest"),
    [("low", "short", (150, 90)), ("main", "short", (400, 90)), (None, "low", (100, 150)), ("low", None, (150, 100))],
)
def test_the_limit_is_that_of_the_rules_own_partition(stand_in, train, evaluate, longest):
    stand_in.set("partitions", {"usual": "1:40:00", "main": "infinite", "low": "2:30:00", "short": "1:30:00"})
    site = Site(train=Stage(100, 400, train), evaluate=Stage(90, 400, evaluate))
    assert tuple(asked(site, "runtime", 9, rule) for rule in (TRAINS, JUDGES)) == longest


def test_each_rule_is_tried_before_any_job_as_it_will_be_asked_for(stand_in, user, monkeypatch):
    tried = []
    monkeypatch.setattr("pipeline.slurm.refusal", tried.append)
    user(f"{RULES}fleet: {{partition: low, gres: 'gpu:4'}}\nsearch: {{gres: none}}\n")
    Site.of_user().check()
    assert len(tried) == 8
    assert len(options_of(tried, partition="main", gres="gpu:a100:1")) == 2
    assert len(options_of(tried, partition="low", gres="gpu:4", nodes="1")) == 2
    without = [call for call in tried if not any(word.startswith("--gres") for word in call)]
    assert [("--nodes=1" in call, call[0]) for call in without] == 2 * [(False, "--partition=low")] + 2 * [
        (True, "--partition=main")
    ]


# ---------------------------------------------------------------------- a search, and a fleet


def asked_of(site: Site, rule: str, attempt: int = 1) -> dict[str, object]:
    """Resources as Snakemake makes them: text is an expression."""
    found = site.resources_of_pools[rule]
    names = {"attempt": attempt, "input": TRAINS, "threads": 1}
    return {
        key: eval(each, dict(names)) if isinstance(each, str) else each  # noqa: S307 - of our own text
        for key, each in found.items()
    }


def options_of(called: list[list[str]], **wanted: str) -> list[list[str]]:
    """The calls with these options."""
    words = {f"--{name.replace('_', '-')}={value}" for name, value in wanted.items()}
    return [call for call in called if words <= set(call)]


@pytest.mark.parametrize("rule", ["search", "fleet"])
@pytest.mark.usefixtures("stand_in")
def test_a_pool_that_is_not_described_is_one_node_without_more_than_it_needs(rule):
    assert Site().pools[rule] == Pool()
    assert Site().threads_of_pools[rule] == Pool().cpus
    assert asked_of(Site(), rule) == {
        "runtime": Pool().minutes,
        "mem_mb": Pool().memory_mb + OF_SNAKEMAKE_MB,
        "slurm_extra": "--open-mode=append",
    }


@pytest.mark.usefixtures("stand_in")
def test_a_search_and_a_fleet_are_described_each_for_itself(user):
    user("search: {minutes: 5, memory_mb: 2000, cpus: 3, nodes: 2}\nfleet: {cpus: 7, gres: 'gpu:4'}\n")
    site = Site.of_user()
    assert site.pools == {"search": Pool(5, 2000, 3, 2), "fleet": Pool(cpus=7, gres="gpu:4")}
    assert site.threads_of_pools == {"search": 3, "fleet": 7}
    assert "nodes" not in asked_of(site, "fleet")
    assert asked_of(site, "fleet")["gres"] == "gpu:4"
    assert "gres" not in asked_of(site, "search")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("search: {minuts: 5}", "search: unknown key `minuts`. Did you mean `minutes`?"),
        ("fleet: {cpus: all}", "fleet: cpus: must be a whole number, got 'all'"),
        ("fleet: 3", "fleet: must be a mapping"),
        ("search: {minutes: 0}", "minutes must be at least 1, got 0"),
        ("search: {memory_mb: 999}", "memory_mb must be at least 1000, got 999"),
        ("fleet: {cpus: 0}", "cpus must be at least 1, got 0"),
        ("fleet: {nodes: 0}", "nodes must be at least 1, got 0"),
    ],
)
def test_a_pool_that_cannot_be_is_one_line(user, text, line):
    user(text)
    assert line in said(Site.of_user)


@pytest.mark.usefixtures("stand_in")
def test_on_several_nodes_a_command_runs_once_and_outlives_a_node():
    """`mpi` alone keeps the executor from asking for all CPUs on one node; it wants more than one task then."""
    several = asked_of(Site(search=Pool(nodes=3)), "search")
    assert (several["nodes"], several["tasks"], several["mpi"]) == (3, 3, "srun")
    assert "--no-kill" in str(several["slurm_extra"]).split()
    one = asked_of(Site(search=Pool(nodes=1)), "search")
    assert not {"nodes", "tasks", "mpi"} & set(one)
    assert "--no-kill" not in str(one["slurm_extra"])


@pytest.mark.parametrize(
    ("own", "of_all", "asked_for"), [("gpu:2", None, 0), (None, "gpu:1", 0), ("gpu:2", "gpu:1", 0), (None, None, None)]
)
@pytest.mark.usefixtures("stand_in")
def test_on_several_nodes_tasks_are_not_counted_by_gpus(own, of_all, asked_for):
    """Or the executor would ask for so many tasks for each GPU; and it takes the GPUs of all jobs, too."""
    site = Site(gres=of_all, search=Pool(nodes=2, gres=own))
    assert asked_of(site, "search").get("tasks_per_gpu") == asked_for


@pytest.mark.parametrize("rule", ["search", "fleet"])
@pytest.mark.usefixtures("stand_in")
def test_a_pool_has_nothing_of_what_a_training_alone_asks_for(rule):
    """Snakemake's default resources are a training's."""
    train = Stage(5, 400, "low", "gpu:a100:1")

    def place(site: Site) -> tuple[object, object]:
        found = {key: asked(site, key) for key in site.resources} | asked_of(site, rule)
        return found["slurm_partition"], found["gres"]

    assert place(Site(partition="main", gres="gpu:1", train=train)) == ("main", "gpu:1")
    assert place(Site(train=train)) == ("", "")
    own = Site(partition="main", gres="gpu:1", train=train, search=Pool(gres="none", partition="low"))
    assert place(own) == (("low", "") if rule == "search" else ("main", "gpu:1"))


@pytest.mark.usefixtures("stand_in")
def test_tasks_of_a_pool_without_gpus_are_not_counted_by_them():
    assert "tasks_per_gpu" not in asked_of(Site(gres="gpu:1", search=Pool(nodes=2, gres="none")), "search")


def test_a_pool_stays_in_the_limit_of_its_own_partition(stand_in):
    stand_in.set("partitions", {"main": "infinite", "short": "1:30:00"})
    site = Site(partition="main", search=Pool(partition="short"))
    assert [asked_of(site, rule)["runtime"] for rule in ("search", "fleet")] == [90, Pool().minutes]


@pytest.mark.usefixtures("stand_in")
def test_options_of_the_site_hold_for_pools_too():
    site = Site(extra="--mail-type=FAIL", fleet=Pool(nodes=2))
    assert str(asked_of(site, "fleet")["slurm_extra"]).split() == [
        "--open-mode=append",
        "--no-kill",
        "--mail-type=FAIL",
    ]


def test_memory_of_a_pool_grows_with_the_attempt_and_its_time_does_not(stand_in):
    stand_in.set("partitions", {"low": "2:00:00", "main": "infinite"})
    site = Site(partition="low", search=Pool(minutes=300, memory_mb=3000), most_memory_mb=7000)
    found = [asked_of(site, "search", attempt) for attempt in (1, 2, 3)]
    assert [each["mem_mb"] for each in found] == [3000 + OF_SNAKEMAKE_MB, 6000 + OF_SNAKEMAKE_MB, 7000]
    assert [each["runtime"] for each in found] == [120] * 3
    short = Stage(minutes=1, memory_mb=400)
    unlimited = Site(partition="main", train=short, evaluate=short, search=Pool(minutes=300))
    assert asked_of(unlimited, "search")["runtime"] == 300  # whatever a training may take


def test_a_pool_that_slurm_would_not_take_is_refused_before_any_job(stand_in, monkeypatch):
    """Only where the site's file says what it is: most users have no search."""
    asked_for = []

    def too_much(options):
        asked_for.append(options)
        (memory,) = (int(word.partition("=")[2]) for word in options if word.startswith("--mem="))
        return "More processors requested than permitted" if "--cpus-per-task=64" in options or memory > 16500 else None

    monkeypatch.setattr("pipeline.slurm.refusal", too_much)
    small = Pool(memory_mb=4000, cpus=8)
    Site().check()
    assert not options_of(asked_for, cpus_per_task="8")
    Site(search=small, gres="gpu:1").check()
    assert len(options_of(asked_for, cpus_per_task="8", nodes="1", ntasks="1", gres="gpu:1")) == 2
    Site(fleet=Pool(memory_mb=4000, nodes=3, gres="gpu:4"), gres="gpu:1").check()
    assert len(options_of(asked_for, nodes="3", ntasks="3", gres="gpu:4")) == 2
    line = said(Site(search=Pool(memory_mb=4000, cpus=64)).check)
    assert "search: SLURM would not take a job like this: More processors" in line
    line = said(Site(search=small, fleet=Pool(memory_mb=5000)).check)
    assert "fleet: later attempts ask for more, up to 20500 MB" in line
    Site(search=small, fleet=Pool(memory_mb=5000), most_memory_mb=16000).check()


# ---------------------------------------------------------------------- what jobs are called


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("snakemake -n", "gode-digits"),
        ("snakemake --configfile a/x.yaml -n", "gode-x"),
        ("snakemake --configfiles a/x.yaml -n", "gode-x"),
        ("snakemake --configfile=a/x.yaml -n", "gode-x"),
        ("snakemake --configfiles=x.yaml", "gode-x"),
        ("snakemake --configfile more.yaml x.yaml --cores 1", "gode-x"),  # the last names the experiment
        ("snakemake --configfile y.yaml --configfile x.yaml", "gode-x"),
        ("snakemake --cores 1 x.yaml --configfile", "gode-digits"),
        ("snakemake --configfile x.yaml --config results=y.yaml -- all", "gode-x"),
        ("snakemake --configfile x.yaml -- all", "gode-x"),
    ],
)
def test_jobs_are_called_by_the_experiment(words, name):
    assert name_of_jobs(words.split()) == name


@pytest.mark.parametrize("name", ["a b", "größe", "x.v2", "x" * 100, "Ω", "a;rm -rf", "cifar10_ab-C"])
def test_a_name_is_one_that_the_executor_takes(name):
    found = name_of_jobs(["--configfile", f"dir.d/{name}.yaml"])
    assert re.fullmatch(r"gode-[A-Za-z0-9_-]{1,45}", found)


def test_no_two_experiments_are_called_the_same():
    """Or the jobs of one would be cancelled with those of the other."""
    names = ["a b", "a.b", "a-b", "a_b", "x" * 45, "x" * 46, "x" * 46 + "y", "x" * 46 + "z"]
    found = [name_of_jobs(["--configfile", f"{name}.yaml"]) for name in names]
    assert len(set(found)) == len(names)
    assert found[2] == "gode-a-b"
    assert found[4] == "gode-" + "x" * 45
