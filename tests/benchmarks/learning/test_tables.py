from helpers.learning_runs import row

from benchmarks.learning import published, study, tables


def test_failed_runs_are_counted_and_not_averaged():
    results = study.Study([row("Hopper-v5", "trpo", seed, 1000.0 * seed) for seed in range(4)] + [row("Hopper-v5", "trpo", 4)])
    assert results.failures("Hopper-v5", study.OURS) == 1
    cells = tables.summary(results, "Hopper-v5", study.OURS)
    assert cells[2:6] == ["0 to 3", "1", "1,500 +/- 1,291", "1,500"]
    assert cells[7] == "0.0 to 3,000"


def test_targets_are_missed_as_well_as_met():
    results = study.Study([row("Hopper-v5", "trpo", 0, 3500.0), row("Walker2d-v5", "trpo", 0, 3500.0)])
    hopper, walker = tables.against(results, study.Study([]), published.MARKS).splitlines()[2:]
    assert hopper.endswith("| met |")
    assert walker.endswith("| missed |")


def test_no_target_is_met_with_a_run_that_failed():
    rows = [row("Hopper-v5", "trpo", 0, 3500.0), row("Hopper-v5", "trpo", 1), row("Walker2d-v5", "trpo", 0)]
    results = study.Study(rows)
    hopper, walker = tables.against(results, study.Study([]), published.MARKS).splitlines()[2:]
    assert hopper.startswith("| Hopper-v5 | 3,500 (1 of 2) |")
    assert walker.startswith("| Walker2d-v5 | none (0 of 1) |")
    assert hopper.endswith("| missed |")
    assert walker.endswith("| missed |")
    assert tables.summaries(results).splitlines()[-1] == "| Walker2d-v5 | sb3_trpo |  | 1 | none |  |  |  |"


def test_missed_targets_are_listed_with_the_mean():
    rows = [row("Hopper-v5", "trpo", 0, 3500.0), row("Walker2d-v5", "trpo", 0, 3500.0)]
    rows += [row("Ant-v5", "trpo", 0, 3500.0), row("Ant-v5", "trpo", 1)]
    listed = tables.missed(study.Study(rows), published.MARKS).splitlines()
    assert listed == ["- Walker2d-v5: 3,500 (1), target 4,800", "- Ant-v5: 3,500 (1 of 2), target 3,000"]


def test_aggregates_are_those_of_all_tasks_and_their_intervals_decide():
    def of(ours):
        scales = {"A-v0": 1.0, "B-v0": 2.0, "C-v0": 6.0}
        rows = [row(env, "trpo", seed, scales[env] * mean) for env in scales for seed, mean in enumerate(ours)]
        rows += [row(env, "sb3-contrib", seed, 1.0) for env in scales for seed in range(3)]
        return tables.aggregate(study.Study(rows), [*scales], study.Scale()).splitlines()

    head, _, *lines = of((1.0, 2.0, 4.0, 13.0))
    assert head == "| of 3 tasks | sb3_trpo, 4 runs each | sb3-contrib, 3 runs each | intervals apart |"
    iqm, median, mean = (float(line.split("|")[2].split("[")[0]) for line in lines)
    assert iqm == 7.83  # of 4, 4, 6, 8, 12 and 13, which lie between 1, 2, 2 and 24, 26, 78
    assert (median, mean) == (10.0, 15.0)
    assert all(line.endswith("| met |") for line in lines)
    assert all(line.endswith("| missed |") for line in of((0.0, 0.0, 0.0, 8.0))[2:])  # whose means are higher, too


def test_cost_is_listed_by_task():
    tuning = [row("A-v0", "wide", 100, 1.0), row("A-v0", "wide", 101), row("B-v0", "wide", 100, 1.0)]
    reported = [row("A-v0", "trpo", 0, 1.0) | {"seconds": 3600.0}]
    assert tables.efforts(tuning, reported).splitlines()[2:] == ["| A-v0 | 2 | 0.03 | 1 | 1.00 |"]


def test_published_returns_are_listed_with_means_intervals_and_earlier_settings(monkeypatch):
    monkeypatch.setattr(study, "RESAMPLES", 2_000)  # so that three runs' interval is from the least to the largest
    rows = [row("CartPole-v1", "trpo", seed, mean) for seed, mean in enumerate((500.0, 498.0, 496.0))]
    rows += [row("CartPole-v1", "sb3-contrib", 0, 490.0), row("Acrobot-v1", "trpo", 0, -83.1)]
    before = study.Study([row("CartPole-v1", "gamma 0.9", 10, 400.0), row("CartPole-v1", "gamma 0.9", 11)])
    cartpole, acrobot = tables.against(study.Study(rows), before, published.RL_ZOO).splitlines()[2:]
    given = "400.0 (1 of 2) | 490.0 (1) |  | 500.0 | 500.0 | missed |"
    assert cartpole == f"| CartPole-v1 | 498.0 [496.0, 500.0] (3) | {given}"
    assert acrobot == "| Acrobot-v1 | -83.1 (1) |  |  |  | -83.1 | -83.1 | met |"
    (hopper,) = tables.against(study.Study([row("Hopper-v5", "trpo", 0, 1.0)]), before, published.MARKS).splitlines()[2:]
    assert hopper == "| Hopper-v5 | 1.0 (1) |  |  | 3,372 (sb3-contrib, -v3, 3 seeds) | 3,618 | 3,400 | missed |"


def test_settings_are_told_apart_whatever_their_order():
    present = {"gamma": 0.99, "n_envs": 4, "policy": "MlpPolicy"}
    assert tables.unlike({"n_envs": 8, "target_kl": 0.1, "gamma": 0.99}, present) == "n_envs 8, target_kl 0.1, no policy"
    assert tables.unlike({"gamma": 0.99, "target_kl": 0.1, "n_envs": 8}, present) == "n_envs 8, target_kl 0.1, no policy"


def test_a_run_that_never_reaches_the_peers_return_counts_as_infinite():
    def timed(label, seed, *curve):
        return row("A-v0", label, seed, 8.0, [list(point) for point in curve])

    def cells(rows, line=2):
        return [cell.strip() for cell in tables.wall_clock(study.Study(rows)).splitlines()[line].split("|")[1:-1]]

    rows = [timed("sb3-contrib", seed, (100, 1.0, 50.0), (200, level, 100.0)) for seed, level in enumerate((4.0, 6.0))]
    rows += [timed("trpo", seed, (100, 5.0, time), (200, 9.0, 40.0)) for seed, time in enumerate((10.0, 12.0))]
    assert cells(rows) == ["A-v0", "last training return: 5.0", "100", "10, 12", "never, 100", "0.110", "met"]
    assert cells(rows, 3) == ["A-v0", "final evaluation: 8.0", "100", "40, 40", "never, never", "0.400", "missed"]
    rows += [timed("trpo", seed, (100, 1.0, 10.0), (200, 2.0, 20.0)) for seed in (2, 3, 4)]
    assert cells(rows)[3:] == ["10, 12, never, never, never", "never, 100", "inf", "missed"]
    missed = "- A-v0, time to sb3-contrib's {}: not reached by most runs, target 0.20"
    listed = tables.slow(study.Study(rows)).splitlines()
    assert listed == [missed.format("last training return"), missed.format("final evaluation")]


def test_choices_of_defaults_are_columns_of_means():
    rows = [row("A-v0", "defaults", seed, 1.0 + seed) for seed in range(2)] + [row("A-v0", "wide", 0, 7.0)]
    rows += [row("B-v0", "wide", 0, 9.0), row("B-v0", "defaults", 0)]
    head, _, first, second = tables.choices(study.Study(rows)).splitlines()
    assert [head, first, second] == [
        "| task | defaults | wide |",
        "| A-v0 | 1.5 +/- 0.7 (2) | 7.0 (1) |",
        "| B-v0 | none (0 of 1) | 9.0 (1) |",
    ]


def test_pairs_of_runs_are_counted():
    ours = [row("Hopper-v5", "trpo", seed, mean) for seed, mean in enumerate((3.0, 5.0))]
    theirs = [row("Hopper-v5", "ppo", seed, mean) for seed, mean in enumerate((4.0, 1.0, 5.0))]
    head, _, cells = tables.beside(study.Study(ours + theirs), ["Hopper-v5"], "PPO").splitlines()
    assert head == "| task | sb3_trpo, 2 runs | PPO, 3 runs | sb3_trpo higher |"
    assert cells == "| Hopper-v5 | 4.0 (3.0 to 5.0) | 3.3 (1.0 to 5.0) | 50% |"
