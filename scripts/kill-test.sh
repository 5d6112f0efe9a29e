#!/usr/bin/env bash
# Kills training (signal 9) at N random moments, resumes, and compares every file with that of an uninterrupted run:
#     scripts/kill-test.sh 300
set -euo pipefail
cd "$(dirname "$0")/.."
TASKLOOM_KILLS="${1:?usage: scripts/kill-test.sh N}" cargo test --release --test kills -- --nocapture
