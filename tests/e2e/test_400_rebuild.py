"""From nothing, and compared: with kolm.outputs, or with what the user's own store holds."""


def test_a_rebuild_in_an_empty_store_is_identical(project):
    project.ok("lock")
    built = project.ok("build").out
    answer = project.ok("rebuild")
    assert sorted(answer.built()) == ["count", "length", "top"]
    digests = {line.split()[-1] for line in built.splitlines()}
    assert {line.split()[-1] for line in answer.out.splitlines()} == digests
    assert answer.out.count("identical: ") == 2


def test_recorded_outputs_are_enough_to_compare_with(project, tmp_path, monkeypatch):
    project.ok("lock")
    project.ok("build", "--record")
    monkeypatch.setenv("KOLM_STORE", str(tmp_path / "another"))
    assert project.ok("rebuild").out.count("identical: ") == 2


def test_with_nothing_to_compare_with_a_rebuild_says_so(project):
    project.ok("lock")
    answer = project.kolm("rebuild")
    assert answer.status == 2
    assert "there is nothing to compare it with" in answer.err


def test_a_rebuild_names_the_first_node_and_file_that_differ(project):
    project.replace(
        "count.py",
        "for word in",
        "**{str(__import__('os').urandom(4)): 1}} if 1 else {word: 0 for word in",
    )
    project.replace("count.py", "{word: words.count(word) **", "{**")
    project.ok("lock")
    project.ok("build")
    answer = project.kolm("rebuild")
    assert answer.status == 16
    assert "count.out: rebuilt, it is not the same, first in counts.json" in answer.err


def test_a_result_that_is_not_the_recorded_one_fails_loudly(project, tmp_path):
    project.ok("lock")
    project.ok("build", "--record")
    text = project.read("kolm.outputs")
    at = text.rindex('tree = "b3:') + len('tree = "b3:')
    project.write("kolm.outputs", text[:at] + "0" * 64 + text[at + 64 :])
    answer = project.kolm("build")
    assert answer.status == 16
    assert "top.out: the result is not what was recorded for this derivation" in answer.err


def test_a_rebuild_can_keep_its_store_but_not_mix_it_with_another(project, tmp_path):
    project.ok("lock")
    project.ok("build")
    project.ok("rebuild", "--store", str(tmp_path / "new"))
    assert project.ok("store", "fsck", "--store", str(tmp_path / "new")).out.endswith("clean\n")
    answer = project.kolm("rebuild", "--store", str(tmp_path / "new"))
    assert answer.status == 2
    assert "a rebuild needs a new store" in answer.err
