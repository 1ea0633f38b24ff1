"""Which rank this is: torchrun's variables, srun's, and those that are empty, odd or half there."""

import pytest

from seer.core.errors import RequestError
from seer.core.launcher import Place, adopt, check_meeting, device_index, idle_gpus, place
from tests.messages import naming, says

SRUN = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "41", "SLURM_STEP_ID": "0"}


@pytest.mark.parametrize(
    ("given", "there"),
    [
        ({}, Place()),
        ({"RANK": "0"}, Place()),
        ({"WORLD_SIZE": "1"}, Place()),
        ({"RANK": " 3 ", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, Place(3, 4, 1)),
        ({"RANK": "3", "WORLD_SIZE": "4"}, Place(3, 4, 3)),
    ],
)
def test_a_place_is_read(given, there):
    assert place(given) == there


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"RANK": ""}, "RANK= "),
        ({"RANK": "abc"}, "RANK=abc"),
        ({"RANK": "-1"}, "RANK=-1"),
        ({"RANK": "1"}, "WORLD_SIZE"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2"),
        ({"WORLD_SIZE": "2"}, "RANK"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "RANK=0"),
        ({"RANK": "0", "WORLD_SIZE": "1e3"}, "WORLD_SIZE=1e3"),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "x"}, "LOCAL_RANK=x"),
    ],
)
def test_what_is_no_place_is_refused_by_the_name_of_the_variable(given, named):
    with pytest.raises(RequestError, match=naming(named)):
        place(given)
    with pytest.raises(RequestError, match=naming(named)):
        adopt(dict(given))


@pytest.mark.parametrize(
    ("given", "empty", "others"),
    [
        ({"WORLD_SIZE": ""}, ["WORLD_SIZE"], ["RANK"]),
        ({"RANK": "0", "WORLD_SIZE": " "}, ["WORLD_SIZE"], ["LOCAL_RANK"]),
        ({"RANK": "", "WORLD_SIZE": "", "LOCAL_RANK": ""}, ["RANK", "WORLD_SIZE", "LOCAL_RANK"], []),
        ({**SRUN, "SLURM_PROCID": ""}, ["SLURM_PROCID"], ["SLURM_NTASKS"]),
        ({**SRUN, "SLURM_NTASKS": "", "SLURM_LOCALID": ""}, ["SLURM_NTASKS", "SLURM_LOCALID"], ["SLURM_PROCID"]),
    ],
)
def test_variables_that_are_set_and_empty_are_all_named_with_what_they_stand_for(given, empty, others):
    with pytest.raises(RequestError) as caught:
        adopt(dict(given))
    words = str(caught.value)
    assert says(words, "empty", f"unset {' '.join(empty)}", "torchrun", *(f"{name}= " for name in empty))
    assert not any(f"{name}= " in words for name in others) and ("1 or more" in words) == ("WORLD_SIZE" in empty)


def test_a_world_of_no_process_is_told_what_the_number_means():
    with pytest.raises(RequestError, match=naming("WORLD_SIZE=0", "1 or more", "unset")):
        place({"RANK": "0", "WORLD_SIZE": "0"})


@pytest.mark.parametrize("lacks", ["MASTER_ADDR", "MASTER_PORT"])
def test_ranks_that_cannot_meet_are_refused(lacks):
    given = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1234"}
    check_meeting(given)
    with pytest.raises(RequestError, match=naming(lacks, "torchrun")):
        check_meeting({name: value for name, value in given.items() if name != lacks})
    with pytest.raises(RequestError, match=naming(lacks, "empty", "torchrun")):
        check_meeting({**given, lacks: ""})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n[07-09,12],m1", "n07"),
        ("gpu-a-3,gpu-a-5", "gpu-a-3"),
        ("rack[1-2]n[1-4]", "rack1n1"),
        ("n[3,5]-ib", "n3-ib"),
        ("one", "127.0.0.1"),
    ],
)
def test_a_step_of_srun_sets_what_torchrun_would(nodes, first):
    given = {**SRUN, "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NODELIST": nodes}
    assert adopt(given) == Place(5, 8, 1)
    assert (given["RANK"], given["WORLD_SIZE"]) == ("5", "8")
    assert (given["LOCAL_RANK"], given["MASTER_ADDR"]) == ("1", first) and 20000 <= int(given["MASTER_PORT"]) < 40000
    assert adopt(given) == Place(5, 8, 1)  # once more, as `open_world` does


def test_all_tasks_of_a_step_find_the_same_port_and_another_step_another():
    def port(**more):
        given = {**SRUN, "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NODELIST": "a,b", **more}
        adopt(given)
        return given["MASTER_PORT"]

    assert port() == port(SLURM_PROCID="0", SLURM_LOCALID="0") != port(SLURM_STEP_ID="1")


def test_torchrun_inside_a_job_goes_first_and_its_address_stays():
    given = {**SRUN, "SLURM_STEP_NUM_TASKS": "8", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "x"}
    assert adopt(given) == Place(0, 2, 0) and given["MASTER_ADDR"] == "x"


def test_a_batch_script_is_one_process_and_says_how_to_be_all():
    found = adopt({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "7"})
    assert (found.rank, found.size) == (0, 1) and says(found.note, "SLURM_NTASKS=8", "srun")
    assert adopt({"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_JOB_ID": "7"}) == Place()


@pytest.mark.parametrize("rank", ["0", "1"])
def test_tasks_without_a_list_of_nodes_are_refused_with_the_remedy(rank):
    with pytest.raises(RequestError, match=naming("SLURM_JOB_NODELIST", "launch/slurm.sbatch", "MASTER_ADDR")):
        adopt({"SLURM_PROCID": rank, "SLURM_NTASKS": "2", "SLURM_LOCALID": rank})
    with pytest.raises(RequestError, match=naming("SLURM_PROCID=x")):
        adopt({"SLURM_PROCID": "x", "SLURM_NTASKS": "2"})


def test_a_rank_has_a_gpu_of_its_own_also_where_slurm_shows_it_no_other():
    assert device_index(3, 8, {}) == 3
    assert device_index(3, 1, {"SLURM_GPUS_PER_TASK": "1"}) == 0
    assert device_index(3, 1, {"SLURM_GPUS_ON_NODE": "8"}) == 0
    with pytest.raises(RequestError, match=naming("local rank 3", "2 GPUs")):
        device_index(3, 2, {"SLURM_GPUS_PER_TASK": "1"})
    with pytest.raises(RequestError, match=naming("local rank 1", "1 GPUs")):
        device_index(1, 1, {"SLURM_GPUS_ON_NODE": "1"})


def test_idle_gpus_are_one_line_with_the_command():
    assert idle_gpus(1, {}) == ""
    assert says(idle_gpus(8, {}), "1 of 8", "torchrun", "--nproc_per_node=8", "-m seer pretrain")
    assert says(idle_gpus(4, {"SLURM_JOB_ID": "1"}), "1 of 4", "srun --ntasks=4 seer pretrain")
