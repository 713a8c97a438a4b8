"""Checkpoints on disk: whole or not at all, as written or refused, and never a way to run code."""

import ast
import builtins
import errno
import hashlib
import json
import os
import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from helpers.small_checkpoints import VERSIONS, is_intact, leftovers, write_one
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

from sb3_trpo.checkpoint import storage
from sb3_trpo.checkpoint.codecs.arrays import NUMBERS
from sb3_trpo.checkpoint.limits import ARRAYS, LARGEST, MANIFEST, STATE
from sb3_trpo.checkpoint.run_folder import newest_intact, sole_owner
from sb3_trpo.checkpoint.storage import FORMAT, BrokenCheckpointError, NewerFormatError, read, write

FILES = (MANIFEST, STATE, ARRAYS)
MORE = [b"\0", b" ", b"\n", b"{}", b"x" * 1000]


def assert_broken(path):
    with pytest.raises(BrokenCheckpointError, match=path.name):
        read(path)


def sealed(folder, state=b"{}", arrays=None, n_timesteps=100, **changes):
    """Write a checkpoint as a stranger would who knows how digests are made."""
    path = folder / f"checkpoint-{n_timesteps:012d}"
    path.mkdir(exist_ok=True)
    contents = {STATE: state, ARRAYS: safetensors.numpy.save({}) if arrays is None else arrays}
    files = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()}
    manifest = {"format": FORMAT, "timesteps": n_timesteps, "versions": {}, "files": files}
    for name, change in changes.items():
        manifest[name] = change(manifest[name]) if callable(change) else change
    contents[MANIFEST] = storage._seal({name: value for name, value in manifest.items() if value is not ...})
    for name, data in contents.items():
        (path / name).write_bytes(data)
    return path


arrays = hnp.arrays(st.sampled_from(sorted(NUMBERS)).map(np.dtype), hnp.array_shapes(min_dims=0, min_side=0, max_side=4))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(st.text(), parts, max_size=4),
    max_leaves=9,
)


@given(
    st.integers(0, 10**18 - 1),
    st.dictionaries(st.text(), st.text(), max_size=3),
    st.dictionaries(st.text(), json_values, max_size=3),
    st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1), arrays, max_size=3),
)
def test_what_is_written_is_read(tmp_path_factory, n_timesteps, versions, state, arrays):
    folder = tmp_path_factory.mktemp("run")
    path = write(folder, n_timesteps, versions, state, arrays)
    found = newest_intact(folder)
    assert found[:4] == (path, n_timesteps, versions, state)
    assert found.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (found.arrays[name].dtype, found.arrays[name].shape) == (array.dtype, array.shape)
        assert found.arrays[name].tobytes() == array.tobytes()


def test_a_checkpoint_is_three_files_that_the_manifest_describes_and_can_be_moved_as_a_whole(tmp_path):
    path = write_one(tmp_path)
    assert [*tmp_path.iterdir()] == [path]
    assert {each.name for each in path.iterdir()} == set(FILES)
    manifest = json.loads((path / MANIFEST).read_bytes())
    assert (manifest["format"], manifest["timesteps"], manifest["versions"]) == (FORMAT, 100, VERSIONS)
    for name in (STATE, ARRAYS):
        data = (path / name).read_bytes()
        assert manifest["files"][name] == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert is_intact(path.rename(tmp_path / "elsewhere"), 100)


def test_writing_again_replaces_what_is_there(tmp_path):
    path = write_one(tmp_path)
    (path / STATE).write_bytes(b"broken")
    (path / "more").write_bytes(b"stranger's")
    assert write_one(tmp_path) == path
    assert is_intact(path, 100)
    assert not (path / "more").exists()
    assert not leftovers(tmp_path)


def test_arrays_that_cannot_be_written_leave_nothing_behind(tmp_path):
    with pytest.raises(safetensors.SafetensorError):
        write(tmp_path, 1, VERSIONS, {}, {"a": np.array([None])})
    with pytest.raises(TypeError):
        write(tmp_path, 1, VERSIONS, {"a": object()}, {})
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_a_missing_end_and_more_bytes_are_found_anywhere(tmp_path, name):
    path = write_one(tmp_path)
    data = (path / name).read_bytes()
    changed = [each for more in MORE for each in (data + more, more + data, data[:5] + more + data[5:])]
    for place in range(0, len(data), 1 if name == MANIFEST else 3):
        changed += [data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :] for bit in (0x01, 0x20, 0x80)]
        changed.append(data[:place])
    for each in changed:
        (path / name).write_bytes(each)
        assert_broken(path)
    (path / name).write_bytes(data)
    assert is_intact(path, 100)


@given(st.data())
def test_any_replaced_stretch_is_found(tmp_path_factory, data):
    path = write_one(tmp_path_factory.mktemp("run"))
    name = data.draw(st.sampled_from(FILES))
    content = (path / name).read_bytes()
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(content))] * 2)))
    changed = content[:start] + data.draw(st.binary(max_size=20)) + content[end:]
    (path / name).write_bytes(changed)
    if changed == content:
        assert is_intact(path, 100)
    else:
        assert_broken(path)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_or_of_another_checkpoint_is_found(tmp_path, name):
    one, other = write_one(tmp_path, 1), write_one(tmp_path, 2)
    if name != STATE:  # these two have the same
        shutil.copy(one / name, other / name)
        assert_broken(other)
    (one / name).unlink()
    assert_broken(one)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("make", [os.mkdir, getattr(os, "mkfifo", None), lambda path: os.symlink("/dev/null", path), "link"])
@pytest.mark.parametrize("name", FILES)
def test_what_is_not_a_regular_file_is_refused_without_waiting_for_it(tmp_path, name, make):
    path = write_one(tmp_path)
    (path / name).rename(tmp_path / name)
    os.symlink(tmp_path / name, path / name) if make == "link" else make(path / name)
    with pytest.raises(BrokenCheckpointError, match="is not a file"):
        read(path)


@pytest.mark.parametrize("name", FILES)
def test_a_file_too_large_to_be_a_checkpoints_is_not_read(tmp_path, name, monkeypatch):
    path = sealed(tmp_path, files=lambda files: {each: {**files[each], "bytes": LARGEST[each] + 1} for each in files})
    with open(path / name, "r+b") as file:
        file.truncate(LARGEST[name] + 1)
    read_names, read_bytes = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (read_names.append(path.name), read_bytes(path))[1])
    with pytest.raises(BrokenCheckpointError):
        read(path)
    assert name not in read_names


@pytest.mark.parametrize("format_", [FORMAT + 1, 10**30, 1e9])
def test_a_newer_format_asks_for_a_newer_version(tmp_path, format_):
    assert read(sealed(tmp_path)).state == {}
    path = sealed(tmp_path, format=format_, files=...)
    for reader, argument in ((read, path), (newest_intact, tmp_path)):
        with pytest.raises(NewerFormatError, match="Install the version"):
            reader(argument)


MALFORMED = {
    "format": [..., None, "2", "1", [], {}, 0, -1],
    "timesteps": [..., None, "100", [], {}, -5, 1.5, True],
    "versions": [..., None, "1.0", [], 5],
    "files": [..., None, [], {}, 5, "state.json", [STATE, ARRAYS], {STATE: {}}, {STATE: None, ARRAYS: None}],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in MALFORMED.items() for value in values])
def test_a_malformed_entry_of_a_manifest_is_broken(tmp_path, key, value):
    assert_broken(sealed(tmp_path, **{key: value}))


@pytest.mark.parametrize("name", [STATE, ARRAYS])
@pytest.mark.parametrize("key", ["bytes", "sha256"])
@pytest.mark.parametrize("value", [..., None, 10**18, -1, 2**70, "2", [], {}, "../../x", 0.5], ids=repr)
def test_absurd_sizes_and_digests_are_broken(tmp_path, name, key, value):
    def change(files):
        files[name][key] = value
        return {each: {k: v for k, v in entry.items() if v is not ...} for each, entry in files.items()}

    assert_broken(sealed(tmp_path, files=change))


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "..", "state.json/../x", "\0", "more"])
def test_files_of_other_names_are_never_opened(tmp_path, name, monkeypatch):
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    path = sealed(folder, files=lambda files: {name: files[STATE], **files})
    opened, read_bytes = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (opened.append(path), read_bytes(path))[1])
    assert read(path).state == {}
    assert opened == [path / each for each in FILES]
    only = sealed(folder, n_timesteps=1, files=lambda files: {name: files[STATE]})
    assert_broken(only)
    assert opened[3:] == [only / MANIFEST]


NO_MANIFESTS = [
    *(b"", b"[]", b"5", b"null", b"true", b'"x"', b"{}", b"NaN", b"{", b"\xff\xfe", b"\0" * 100, b'{"sha256":"x"}'),
    *(b"[" * 10**5, b'{"a":' * 10**5, b"9" * 10**5, b'{"format":' + b"9" * 5000 + b"}", b"1e999", b"\xef\xbb\xbf{}"),
    *('{"format":1}'.encode("utf-16"), b'{"format":2,"sha256":"0"}'),
]


@pytest.mark.parametrize("data", NO_MANIFESTS, ids=lambda data: repr(data[:14]))
def test_a_manifest_that_is_none_is_broken(tmp_path, data):
    path = write_one(tmp_path)
    (path / MANIFEST).write_bytes(data)
    assert_broken(path)


@given(json_values)
def test_any_json_for_a_manifest_is_broken(tmp_path_factory, content):
    path = sealed(tmp_path_factory.mktemp("run"))
    (path / MANIFEST).write_bytes(json.dumps(content, separators=(",", ":")).encode())
    assert_broken(path)


@given(st.dictionaries(st.sampled_from(["format", "files", "timesteps", "versions", STATE]), json_values))
def test_any_manifest_with_a_right_digest_is_broken_or_newer(tmp_path_factory, content):
    path = sealed(tmp_path_factory.mktemp("run"))
    (path / MANIFEST).write_bytes(storage._seal(content))
    with pytest.raises((BrokenCheckpointError, NewerFormatError)):
        read(path)


def test_a_manifest_with_a_repeated_key_is_broken(tmp_path):
    path = sealed(tmp_path)
    data = (path / MANIFEST).read_bytes()
    (path / MANIFEST).write_bytes(data.replace(b'"timesteps":100', b'"timesteps":999,"timesteps":100'))
    assert_broken(path)


NO_STATES = [b"", b"{", b"[" * 10**5, b'{"a":' * 10**5, b"9" * 10**5, b"\xff", b"[]", b"5", b"null", b'"run"']


@pytest.mark.parametrize("state", NO_STATES, ids=lambda data: repr(data[:9]))
def test_a_state_that_is_none_is_broken(tmp_path, state):
    assert_broken(sealed(tmp_path, state=state))


def header(content, data=b"", length=None):
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


NO_ARRAYS = [
    *(b"", b"\0" * 7, b"\0" * 8, header(b"{"), header({}, length=2**63), header({}, length=10**6), header([])),
    *(header(entry(), data) for data in (b"123", b"12345")),
    *(header(entry(offsets=offsets), b"1234") for offsets in ((4, 0), (-4, 4))),
    *(header(entry(shape=shape), b"1234") for shape in ((2,), (-1,), (2**62, 4))),
    *(header(entry(dtype=dtype), b"1234") for dtype in ("X9", "O")),
    header(b"[" * 10**4),
]


@pytest.mark.parametrize("data", NO_ARRAYS, ids=range(len(NO_ARRAYS)))
def test_arrays_that_are_no_safetensors_are_broken(tmp_path, data):
    assert_broken(sealed(tmp_path, arrays=data))


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "F8_E5M2", "C64", "F4"])
def test_dtypes_that_are_not_written_are_read_or_broken(tmp_path, dtype):
    size = {"BF16": 2, "C64": 8}.get(dtype, 1)
    path = sealed(tmp_path, arrays=header(entry(dtype, (2,), (0, 2 * size)), b"\0" * 2 * size))
    try:
        array = read(path).arrays["a"]
    except BrokenCheckpointError:
        return
    assert (type(array), array.shape) == (np.ndarray, (2,))


class Payload:
    ran = False

    def __reduce__(self):
        return setattr, (Payload, "ran", True)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_contents_are_refused_and_do_not_run(tmp_path, protocol):
    data = pickle.dumps(Payload(), protocol)
    as_object = header({"a": {"dtype": "O", "shape": [1], "data_offsets": [0, len(data)]}}, data)
    for contents in ({"state": data}, {"arrays": data}, {"arrays": as_object}, {"state": data, "arrays": data}):
        assert_broken(sealed(tmp_path, **contents))
    path = sealed(tmp_path)
    (path / MANIFEST).write_bytes(data)
    assert_broken(path)
    assert not Payload.ran
    pickle.loads(data)
    assert Payload.ran, "the payload would have run"
    Payload.ran = False


def names_in(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, (ast.Attribute, ast.Name)):
            yield ast.unparse(node)


FORBIDDEN = [
    *("pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "runpy", "ctypes", "pydoc"),
    *("th.load", "torch.load", "np.load", "numpy.load", "eval", "exec", "compile", "__import__"),
    *("importlib.import_module", "importlib.util"),
]


def forbidden_in(source):
    return [name for name in names_in(source) if any(f"{name}.".startswith(f"{each}.") for each in FORBIDDEN)]


@pytest.mark.parametrize("path", sorted(Path(storage.__file__).parent.rglob("*.py")), ids=lambda path: path.name)
def test_no_module_imports_what_unpickles_or_runs_text(path):
    assert forbidden_in(path.read_text("utf-8")) == []


def test_a_source_that_unpickles_would_be_noticed():
    for source in ("import pickle", "from pickle import loads", "import torch as th; th.load(1)", "eval('1')", "np.load.x"):
        assert forbidden_in(source)


class Faults:
    """Lets calls of the system fail: the one of a number, or all from there on."""

    def __init__(self, monkeypatch, error, first, lasting=False):
        self.count, self.first, self.lasting, self.error, self.calls = 0, first, lasting, error, []
        self.depth = 0
        names = {
            builtins: ["open"],
            os: ["open", "fsync", "close", "rename", "mkdir", "unlink", "rmdir"],
            Path: ["mkdir", "rename", "exists"],
        }
        for owner, name in ((owner, name) for owner, each in names.items() for name in each):
            monkeypatch.setattr(owner, name, self.wrap(name, getattr(owner, name)))

    @property
    def has_struck(self):
        return self.count >= self.first

    def strike(self, name):
        self.calls.append(name)
        self.count += 1
        if self.count == self.first or (self.lasting and self.count > self.first):
            raise self.error

    def wrap(self, name, real):
        def call(*args, **kwargs):
            if self.depth:  # Path.mkdir calls os.mkdir: one call of the system
                return real(*args, **kwargs)
            self.depth += 1
            try:
                if name == "close":
                    real(*args, **kwargs)
                self.strike(name)
                made = None if name == "close" else real(*args, **kwargs)
            finally:
                self.depth -= 1
            return FaultyFile(made, self) if name == "open" and not isinstance(made, int) else made

        return call


class FaultyFile:
    def __init__(self, file, faults):
        self.file, self.faults = file, faults
        self.fileno = file.fileno

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, data):
        self.file.write(data[: len(data) // 2])
        self.faults.strike("write")
        return self.file.write(data[len(data) // 2 :])

    def flush(self):
        self.faults.strike("flush")
        self.file.flush()


NO_SPACE = OSError(errno.ENOSPC, "No space left on device")
N_STEPS = 40
"""More than a write has."""


def faulty_write(folder, error, first, lasting=False):
    """Write with one fault; return the faults, and the error that came out."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        faults = Faults(monkeypatch, error, first, lasting)
        try:
            write_one(folder, 200)
        except type(error) as caught:
            return faults, caught
    return faults, None


@pytest.mark.parametrize("error", [NO_SPACE, KeyboardInterrupt(), MemoryError()], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("first", range(1, N_STEPS))
def test_a_fault_at_any_step_is_raised_and_costs_nothing_else(tmp_path, first, error):
    previous = write_one(tmp_path, 100)
    faults, caught = faulty_write(tmp_path, error, first)
    assert caught is (error if faults.has_struck else None)
    assert not leftovers(tmp_path)
    assert is_intact(previous, 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert newest_intact(tmp_path).n_timesteps in (100, 200)
    assert is_intact(write_one(tmp_path, 200), 200)
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("first", range(1, N_STEPS))
def test_a_fault_while_a_broken_one_is_replaced_costs_no_other(tmp_path, first):
    previous = write_one(tmp_path, 100)
    (write_one(tmp_path, 200) / STATE).write_bytes(b"broken")
    _, caught = faulty_write(tmp_path, NO_SPACE, first)
    assert not [name for name in leftovers(tmp_path) if name.startswith("writing-")]
    assert is_intact(previous, 100)
    if caught is None:
        assert is_intact(tmp_path / "checkpoint-000000000200", 200)
    with sole_owner(tmp_path):
        assert is_intact(write_one(tmp_path, 200), 200)
        assert not leftovers(tmp_path)


@pytest.mark.parametrize("first", range(1, N_STEPS))
def test_a_lasting_fault_is_raised_and_its_traces_are_removed_later(tmp_path, first):
    previous = write_one(tmp_path, 100)
    faults, caught = faulty_write(tmp_path, NO_SPACE, first, lasting=True)
    assert caught is (NO_SPACE if faults.has_struck else None)
    assert is_intact(previous, 100)
    with sole_owner(tmp_path):
        assert not leftovers(tmp_path)
        assert is_intact(write_one(tmp_path, 200), 200)


def test_the_steps_of_a_write_are_fewer_than_those_at_which_it_is_made_to_fail(tmp_path):
    faults, _ = faulty_write(tmp_path, NO_SPACE, first=10**9)
    assert faults.count < N_STEPS - 1
    assert {"mkdir", "open", "write", "flush", "fsync", "rename"} <= {*faults.calls}


def test_everything_is_on_the_disk_before_it_gets_its_name_and_the_name_after(tmp_path):
    faults, _ = faulty_write(tmp_path, NO_SPACE, first=10**9)
    before, after = faults.calls[: faults.calls.index("rename")], faults.calls[faults.calls.index("rename") :]
    assert before.count("write") == before.count("flush") == 3
    assert before.count("fsync") == (4 if os.name == "posix" else 3)
    assert after.count("fsync") == (1 if os.name == "posix" else 0)
    assert max(i for i, name in enumerate(before) if name == "write") < len(before) - 1 - before[::-1].index("fsync")
