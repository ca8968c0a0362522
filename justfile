# `just` lists these. CI runs `tests/run`, which is `just test`.

_default:
    @just --list

# Install what the tests need, check format and lints, pass all tests.
test *FILTER:
    tests/run {{FILTER}}

# The tests of the programs, with up to so many milliseconds at each failpoint: what only passes when all goes fast is found out.
test-slowly MILLISECONDS="60" *FILTER:
    DEWAR_FAILPOINT_DELAY={{MILLISECONDS}} RUST_TEST_THREADS=12 cargo test --locked --test it -- {{FILTER}}

# What needs a kernel of its own, in virtual machines, installing what those need: `just vm-test oom`, `just vm-test --boot full-6.1`.
vm-test *ARGUMENTS:
    tests/needs vm
    cargo run --locked -q -p vm-tests -- {{ARGUMENTS}}

# Format and lints only.
check:
    cargo fmt --check
    cargo clippy --workspace --all-targets -- -D warnings
    cargo clippy -p vm-tests --test guest -- -D warnings

# The three programs, as they are shipped: dewar, dewar-full and dewar-runner in target/release.
build:
    cargo build --release --locked

# Time and size against floors measured in the same run: all, or one of one, wide, asleep, replay, samples, thousand, kill, calls, rate, node, known, page.
bench PART="": build
    cargo bench --bench run -- {{PART}}

# dewar beside systemd-run, runc and crun, in one virtual machine.
vm-bench:
    tests/needs vm
    cargo run --locked -q -p vm-tests -- --boot bench-6.1

# Fuzz one decoder: frame, record, task_file or template. Needs cargo-fuzz and a nightly toolchain.
fuzz TARGET SECONDS="600":
    cargo +nightly fuzz run --fuzz-dir tests/fuzz {{TARGET}} -- -max_total_time={{SECONDS}}
