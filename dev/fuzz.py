#!/usr/bin/env python3
"""Fuzzes every parser of what may come from a stranger, with libFuzzer and coverage.

A target is a file in crates/fuzz/targets. Inputs that reach new code are kept in target/fuzz/corpus, and what makes a target
fail in target/fuzz/failures: the next run begins with both. As many targets run at a time as there are processors. The seeds
are the golden vectors, and replies of a timestamp authority that openssl makes once.
"""

import argparse
import concurrent.futures
import json
import os
import re
import subprocess

import setup
from build import PLAIN_PACKAGES, target_dir
from shell import IS_ROOT, ROOT, Failed, Missing, is_debian, logged, main, output, say, which

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


def authority():
    """The replies of a timestamp authority: one that grants and one that refuses. What the target needs to check them is put into its folder."""
    folder = HOME / "scratch" / "timestamp"
    good, bad = folder / "reply.tsr", folder / "refused.tsr"
    if not bad.exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "message").write_text("what was stamped\n", encoding="utf-8")
        (folder / "serial").write_text("01\n", encoding="utf-8")
        (folder / "tsa.cnf").write_text(
            "[req]\ndistinguished_name = dn\n[dn]\n[tsa]\ndefault_tsa = t\n[t]\nserial = serial\nsigner_cert = tsa.pem\nsigner_key = tsa.key\ncerts = ca.pem\n"
            "signer_digest = sha256\ndefault_policy = 1.2.3.4.1\ndigests = sha256\naccuracy = secs:1\nordering = yes\n"
            "tsa_name = yes\ness_cert_id_alg = sha256\n",
            encoding="utf-8",
        )
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "36500", "-config", "tsa.cnf"]
        is_ca = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign"]
        stamps = ["-addext", "keyUsage=critical,digitalSignature", "-addext", "extendedKeyUsage=critical,timeStamping"]
        openssl = lambda *arguments: logged(["openssl", *arguments], "openssl cannot make a timestamp authority", cwd=folder)
        openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=Fuzz CA", *is_ca)
        openssl("req", "-x509", *curve, "-keyout", "tsa.key", "-out", "tsa.pem", "-subj", "/CN=Fuzz TSA", *stamps, "-CA", "ca.pem", "-CAkey", "ca.key")
        for reply, more in ((good, []), (bad, ["-tspolicy", "1.2.3.4.9"])):
            openssl("ts", "-query", "-data", "message", "-sha256", "-cert", *more, "-out", "query.tsq")
            openssl("ts", "-reply", "-config", "tsa.cnf", "-section", "t", "-queryfile", "query.tsq", "-out", reply)
    return [good.read_bytes(), bad.read_bytes()]


def dumps(entries):
    """Lines of a dump: the first, one with an image that gives its digest, and one with an erased image and one without any."""
    header = '{"agd_export":1,"logs":[{"first":"0","images":true,"last":"9","origin":"agd-7/db"}]}'
    entry = entries["entries"][0]["entry"]
    return [header] + [
        f'{{"entry":{entry},{erased}"index":"7"{images},"origin":"agd-7/db"{salt}}}'
        for erased, images, salt in (
            ("", "", ""),
            ('"erased":true,', ',"key":null,"old":null', ""),
            ("", ',"key":"{\\"id\\":1}","new":"{\\"a\\":\\"ü\\"}"', f',"salt":"{"0f" * 16}"'),
        )
    ]


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
        "dump": dumps(entries),
        "entry": [entry["entry"] for entry in entries["entries"]],
        "incarnation": [checkpoint + checkpoint + "the disk was lost"],
        "note": [note[key] for note in notes for key in ("note", "cosigned")],
        "policy": [f"# ours\n{logs}quorum none\n", f"{logs}{witness}group G any W\nquorum none\n"],
        "store": [bytes([file, how, 0, 9]) + b"1" for file in range(8) for how in range(2)],
        "tile_path": ["tile/0/000", "tile/entries/x001/x234/067.p/8", "tile/3/255.p/255"],
        "timestamp": authority(),
        "tlog_proof": [proof["proof"] for proof in proofs],
        "token": [token["token"] for token in golden("tokens")["tokens"]],
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


def build(own):
    """The folder of the programs, which are linted first."""
    # As everything else is linted: what they depend on is checked once.
    lint = ["cargo", "clippy", "--locked", "--quiet", "--all-targets", *PLAIN_PACKAGES, "-p", "agd-fuzz", "--", "-D", "warnings"]
    if own:
        # Features as tests resolve them: what the targets depend on is there already, but for libFuzzer.
        programs = [word for target in TARGETS for word in ("--example", target)]
        make = ["cargo", "build", "--locked", "--quiet", *PLAIN_PACKAGES, "-p", "agd-fuzz", *programs]
        covered = {"RUSTC_WORKSPACE_WRAPPER": str(ROOT / "dev" / "rustc-covered"), "AGD_COVERED": FLAGS}
        folder = target_dir(os.environ) / "debug" / "examples"
    else:
        # A named target keeps the flags from build scripts.
        host = triple()
        make = ["cargo", "build", "--locked", "--quiet", "--release", "-p", "agd-fuzz", "--examples", "--target", host, "--target-dir", HOME / "build"]
        covered = {"RUSTFLAGS": FLAGS, "CARGO_PROFILE_RELEASE_LTO": "off", "CARGO_INCREMENTAL": "0"}
        folder = HOME / "build" / host / "release" / "examples"
    for command, more in ((lint, {}), (make, covered)):
        if subprocess.run(command, cwd=ROOT, env={**os.environ, **more}).returncode != 0:
            raise Failed("the fuzz targets do not build")
    return folder


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
    parser.add_argument("--own", action="store_true", help="see only what agd's own crates reach, and take what they depend on as the tests have it: built in a minute, for CI")
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
    programs = build(options.own)
    with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as threads:
        one = lambda target: run(programs / target, target, options.seconds, inputs[target])
        held = list(threads.map(one, options.target or TARGETS))
    return 0 if all(held) else 1


if __name__ == "__main__":
    main(fuzz)
