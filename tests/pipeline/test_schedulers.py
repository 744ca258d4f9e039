"""What Ray's schedulers were made to do otherwise. No Ray is started."""

from __future__ import annotations

from types import SimpleNamespace

from ray.tune.experiment import Trial
from test_space import SPACE, TRIALS, changed, search_of

from pipeline.schedulers import scheduler_of

NINE = ("epochs: 4", "epochs: 9")
ALL_RATES = [(SPACE, "    train.lr: {log_uniform: [1e-3, 1e-1]}\n"), ("  conditions: [", "  conditions: [] # [")]


class Controller:
    """Of Tune, as much as a scheduler asks of it."""

    def __init__(self, scheduler, number):
        self.scheduler, self.stopped = scheduler, []
        self.trials = [Told(n) for n in range(number)]
        for trial in self.trials:
            scheduler.on_trial_add(self, trial)

    def stop_trial(self, trial):
        if trial.status not in (Trial.TERMINATED, Trial.ERROR):
            self.scheduler.on_trial_remove(self, trial)
            trial.status = Trial.TERMINATED
            self.stopped.append(trial.number)

    def tell(self, number, epoch):
        trial = self.trials[number]
        decision = self.scheduler.on_trial_result(self, trial, {"epoch": epoch, "score": number})
        if decision == "STOP":
            self.stop_trial(trial)
        elif decision == "PAUSE":
            trial.status = Trial.PAUSED


class Told:
    def __init__(self, number):
        self.number, self.status, self.is_saving = number, Trial.RUNNING, False

    def __repr__(self):
        return str(self.number)


def test_a_group_does_not_wait_for_one_that_has_failed(tmp_path):
    """Nine trials are looked at after 1, 3 and 9 epochs: three, then one go on. The last that the second look waits for
    fails."""
    search = search_of(tmp_path, changed(NINE, (TRIALS, "num_trials: 17\n  scheduler: hyperband")))
    scheduler = scheduler_of(search)
    scheduler.set_search_properties("score", "max")
    controller = Controller(scheduler, 17)
    *_, nine = range(8), range(8, 17)  # groups of three and five come first
    for number in nine:
        controller.tell(number, 1)
    assert controller.stopped == [*range(8, 14)]
    for number, epoch in ((14, 2), (14, 3), (15, 2), (15, 3), (16, 2)):
        controller.tell(number, epoch)
    assert scheduler.choose_trial_to_run(controller) is None
    scheduler.on_trial_error(controller, controller.trials[16])
    controller.trials[16].status = Trial.ERROR
    assert controller.stopped == [*range(8, 15)]
    assert scheduler.choose_trial_to_run(controller) is controller.trials[15]


def test_who_takes_over_weights_stays_the_trial_that_it_is(tmp_path):
    """What it is given is its own: its number, and the job that it falls back on."""
    search = search_of(tmp_path, changed(*ALL_RATES, (TRIALS, "num_trials: 4\n  scheduler: pbt")))
    loser, best = (
        SimpleNamespace(config={"given": {"number": n}, "lr": lr, "weight_decay": 0.0})
        for n, lr in ((0, 0.002), (1, 0.01))
    )
    config, *_ = scheduler_of(search)._get_new_config(loser, best)
    assert config["given"] == {"number": 0}
    assert config["lr"] in (0.0125, 0.008)
