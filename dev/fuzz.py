#!/usr/bin/env python3
"""Fuzzes every parser of what may come from a stranger, with libFuzzer and coverage.

A target is a file in crates/fuzz/targets. Inputs that reach new code are kept in target/fuzz/corpus, and what makes a target
fail in target/fuzz/failures: the next run begins with both. The seeds are the golden vectors.
"""

import argparse
import json
import os
import re
import subprocess

import setup
from shell import IS_ROOT, ROOT, Failed, Missing, is_debian, main, output, say, which

TARGETS = sorted(path.stem for path in (ROOT / "crates" / "fuzz" / "targets").glob("*.rs"))
HOME = ROOT / "target" / "fuzz"

# What `-C passes` can do on a stable compiler: coverage, and comparisons that the fuzzer may learn from.
FLAGS = (
    "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters "
    "-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 "
    "-Cdebug-assertions -Coverflow-checks"
)


def golden(name):
    return json.loads((ROOT / "tests" / "golden" / f"{name}.json").read_text(encoding="utf-8"))


def seeds():
    """Valid inputs of each target."""
    entries, notes, proofs = golden("entries"), golden("notes")["notes"], golden("proofs")["proofs"]
    checkpoint = notes[0]["body"]
    vkeys = [note[key] for note in notes for key in ("vkey", "witness_vkey")]
    logs = "".join(f"log {note['vkey']}\n" for note in notes[:1])
    witness = f"witness W {notes[0]['witness_vkey']}\n"
    return {
        "bundle": [bytes.fromhex(entries["bundle"]), b""],
        "checkpoint": [note["body"] for note in notes],
        "entry": [entry["entry"] for entry in entries["entries"]],
        "incarnation": [checkpoint + checkpoint + "the disk was lost"],
        "note": [note[key] for note in notes for key in ("note", "cosigned")],
        "policy": [f"# ours\n{logs}quorum none\n", f"{logs}{witness}group G any W\nquorum none\n"],
        "store": [bytes([file, how, 0, 9]) + b"1" for file in range(8) for how in range(2)],
        "tile_path": ["tile/0/000", "tile/entries/x001/x234/067.p/8", "tile/3/255.p/255"],
        "tlog_proof": [proof["proof"] for proof in proofs],
        "vkey": vkeys,
    }


def triple():
    return re.search(r"^host: (\S+)$", output(["rustc", "-vV"]), re.MULTILINE).group(1)


def compiler():
    """libFuzzer is C++."""
    if which("c++"):
        return
    if not (IS_ROOT and is_debian()):
        raise Missing("a C++ compiler (c++), for libFuzzer")
    setup.apt_get(["g++"])


def build():
    """The folder of the programs, which are linted first. A named target keeps the flags from build scripts."""
    host = triple()
    selected = ["--locked", "--quiet", "--release", "-p", "agd-fuzz", "--target", host, "--target-dir", HOME / "build"]
    env = {**os.environ, "RUSTFLAGS": FLAGS, "CARGO_PROFILE_RELEASE_LTO": "off", "CARGO_INCREMENTAL": "0"}
    for command in (["cargo", "clippy", *selected, "--", "-D", "warnings"], ["cargo", "build", *selected]):
        if subprocess.run(command, cwd=ROOT, env=env).returncode != 0:
            raise Failed("the fuzz targets do not build")
    return HOME / "build" / host / "release"


def run(program, target, seconds, inputs):
    """One target for so long. Returns whether it held."""
    folders = {kind: HOME / kind / target for kind in ("corpus", "seeds", "failures", "scratch")}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(inputs):
        (folders["seeds"] / str(number)).write_bytes(seed if isinstance(seed, bytes) else seed.encode())
    failed_before = sorted(folders["failures"].iterdir())
    command = [program, f"-max_total_time={seconds}", "-timeout=10", "-rss_limit_mb=1024", "-max_len=70000", "-print_final_stats=1", f"-artifact_prefix={folders['failures']}/"]
    command += [folders["corpus"], folders["seeds"]]
    # What failed before must hold now.
    for old in failed_before:
        again = subprocess.run([program, old], cwd=folders["scratch"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if again.returncode != 0:
            say(f"FAIL {target}: {old.relative_to(ROOT)} again\n{again.stdout[-3000:]}")
            return False
        old.unlink()
    done = subprocess.run(command, cwd=folders["scratch"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    count = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stdout)
    coverage = re.findall(r" cov: (\d+) ", done.stdout)
    if done.returncode != 0 or not count or not coverage:
        say(f"FAIL {target}:\n{done.stdout[-3000:]}")
        return False
    say(f"ok   {target:<12} {int(count.group(1)):>12,} inputs, {coverage[-1]} places reached, {seconds} s")
    return True


def fuzz():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600, help="for each target (default 600)")
    parser.add_argument("target", nargs="*", help=f"of {', '.join(TARGETS)}; all when none is named")
    options = parser.parse_args()
    unknown = set(options.target) - set(TARGETS)
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    inputs = seeds()
    without = [target for target in TARGETS if not inputs.get(target)]
    if without:
        raise Failed(f"targets without seeds: {', '.join(without)}")
    compiler()
    programs = build()
    held = [run(programs / target, target, options.seconds, inputs[target]) for target in options.target or TARGETS]
    return 0 if all(held) else 1


if __name__ == "__main__":
    main(fuzz)
