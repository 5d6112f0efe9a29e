//! The run as a whole, and what it leaves behind.

use std::path::PathBuf;

use super::{COUNT, Every};
use crate::choices::choices;
use crate::config::keys::{Kind, PathFrom};
use crate::config::table::table;

table! {
    /// The run as a whole.
    pub struct Run = RUN {
        /// Names the run and the start of its folder.
        name: String = "run" in Kind::Name;
        /// Same configuration, seed and device: the same bytes.
        seed: u64 = 42 in 0..=i64::MAX;
        /// `auto` is the CPU in this version; `emulated` runs the CUDA kernels as C++, checked and slow, for tests.
        device: String = "auto" in Kind::Device;
        /// Folder that receives one folder per run. Relative to the current directory.
        out: PathBuf = "runs" in Kind::Path(PathFrom::CurrentDir);
        /// Worker threads; 0 means one per core.
        threads: usize = 0 in 0..=4096;
    }
}

table! {
    /// Where data files are.
    pub struct Data = DATA {
        /// Data files and the tokenizer are looked up here. Relative to the file that sets it (`--set`: to the current
        /// directory; the default: to the loaded file).
        root: PathBuf = "." in Kind::Path(PathFrom::SettingFile);
        /// Said when a data file is missing: where the set comes from.
        origin: String = "";
        /// A wrong label, short line or invalid UTF-8 stops the run, or is skipped and counted.
        on_bad_row: OnBadRow = "error";
        /// Where a device's run keeps its training examples: on the device for the whole run, so that a round brings their numbers only;
        /// on the host, which packs every batch; or on the device where that is possible and there is room. The results are the
        /// same.
        resident: DataPlace = "auto", resumable;
    }
}

choices! {
    pub enum DataPlace { Auto = "auto", Device = "device", Host = "host" }
}

choices! {
    pub enum OnBadRow { Error = "error", Skip = "skip" }
}

table! {
    /// What `resume` starts from.
    pub struct Checkpoint = CHECKPOINT {
        /// When a checkpoint is written.
        every: Every = "epoch", resumable;
        /// Newest checkpoints kept.
        keep: usize = 2 in 1..=1 << 20, resumable;
        /// What is left of the checkpoints once the run has ended: all that are kept, or the last one's parameters alone.
        /// Without the optimizer's state the run cannot go on with more rounds.
        r#final: FinalCheckpoint = "all", resumable;
        /// Training waits only until a checkpoint (or `best/`) is copied; the copy is written while it goes on. The same files;
        /// costs their size in memory once more.
        background: bool = false, resumable;
    }
}

choices! {
    pub enum FinalCheckpoint { All = "all", Model = "model" }
}

table! {
    /// What metrics.jsonl and trace.json receive, and who else is told.
    pub struct Observe = OBSERVE {
        /// Rounds between two `round` lines in metrics.jsonl.
        log_every: u64 = 1 in 1..=COUNT, resumable;
        /// Rounds between two `conflict` lines (cosine matrix, norms); 0 writes none.
        conflict_every: u64 = 10 in 0..=COUNT, resumable;
        /// Rounds of `trace.json` (for ui.perfetto.dev), from each start of the run on; failures, evaluations and checkpoints
        /// are always in it. 0 writes none.
        trace_rounds: u64 = 1000 in 0..=COUNT, resumable;
        /// A project of [Trackio](https://huggingface.co/docs/trackio) that also gets the run: its scalars and its configuration, in
        /// `TRACKIO_DIR`, or in `trackio` of Hugging Face's folder (`HF_HOME`). Not for a folder on a network file system. Empty: none.
        trackio: String = "", resumable;
    }
}
