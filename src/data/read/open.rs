//! Opening a data file: its format and compression by name, held against its first bytes so that a mislabelled file
//! is named as such instead of producing garbage.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail, ensure};

use crate::config::schema::Format;
use crate::data::suggest::closest;

/// Decompressed bytes per read call.
const BUFFER_BYTES: usize = 256 << 10;

/// A file and how to read it. Files with equal settings are read once.
#[derive(Clone, Debug, PartialEq)]
pub struct FileSpec {
    pub path: PathBuf,
    /// From the file name when absent.
    pub format: Option<Format>,
    /// Delimited text without a header line: the names of its leading columns.
    pub columns: Vec<String>,
    /// Delimited text: fields may be quoted; by default only in CSV.
    pub quoted: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    Plain,
    Gzip,
    Zstd,
}

/// What the first bytes of a file say it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Gzip,
    Zstd,
    Parquet,
    Zip,
    Utf16,
    Other,
}

/// The format of a file, from `format` or the extension before `.gz` or `.zst`.
pub fn format_of(file: &FileSpec) -> Result<Format> {
    if let Some(format) = file.format {
        return Ok(format);
    }
    let (stem, _) = split_compression(&file.path);
    match extension(&stem).as_str() {
        "jsonl" | "ndjson" => Ok(Format::Jsonl),
        "tsv" | "tab" => Ok(Format::Tsv),
        "csv" => Ok(Format::Csv),
        "parquet" => Ok(Format::Parquet),
        "json" => bail!(
            "{}: `.json` is not a known data format; if it holds one JSON object a line, set format = \"jsonl\"",
            file.path.display()
        ),
        _ => bail!(
            "{}: cannot tell the format from the name (.jsonl, .tsv, .csv or .parquet, also with .gz or .zst); set `format`",
            file.path.display()
        ),
    }
}

/// Opens text for reading, decompressed; `bytes_read` counts bytes of the file itself.
pub fn open_text(path: &Path, bytes_read: Arc<AtomicU64>) -> Result<Box<dyn BufRead + Send>> {
    let (_, compression) = split_compression(path);
    let file = open_file(path)?;
    let content = sniff(path, &file)?;
    check_content(path, compression, content)?;
    let packed_bytes = Arc::clone(&bytes_read);
    let counted = BufReader::with_capacity(BUFFER_BYTES, Counted { file, bytes_read });
    let decoder: Box<dyn Read + Send> = match compression {
        Compression::Plain => return Ok(Box::new(counted)),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(counted)),
        Compression::Zstd => {
            let decoder = zstd::stream::read::Decoder::with_buffer(counted);
            Box::new(decoder.with_context(|| format!("{}: cannot start decompression", path.display()))?)
        }
    };
    Ok(Box::new(BufReader::with_capacity(BUFFER_BYTES, Unpacked { decoder, bytes: 0, packed_bytes })))
}

/// Opens a Parquet file after checking that it is one.
pub fn open_parquet(path: &Path) -> Result<File> {
    let (_, compression) = split_compression(path);
    ensure!(
        compression == Compression::Plain,
        "{}: a Parquet file is compressed inside; unpack this one and name it .parquet",
        path.display()
    );
    let file = open_file(path)?;
    match sniff(path, &file)? {
        Content::Parquet => Ok(file),
        content => bail!("{}: not a Parquet file ({})", path.display(), content.describe()),
    }
}

/// Opens a regular, non-empty file, or says what stands there instead.
pub fn open_file(path: &Path) -> Result<File> {
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => bail!("{}: no such file{}", path.display(), sibling_hint(path)),
        Err(error) => return Err(error).with_context(|| format!("{}: cannot open", path.display())),
    };
    ensure!(!metadata.is_dir(), "{}: is a directory; name the file in it", path.display());
    ensure!(metadata.is_file(), "{}: is not a regular file (data files are read more than once)", path.display());
    ensure!(metadata.len() > 0, "{}: the file is empty", path.display());
    File::open(path).with_context(|| format!("{}: cannot open", path.display()))
}

fn sibling_hint(path: &Path) -> String {
    let Some(folder) = path.parent() else { return String::new() };
    let Ok(entries) = std::fs::read_dir(folder) else {
        return format!(" (nor the folder {})", folder.display());
    };
    let names: Vec<String> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    closest(&name, names.iter().map(String::as_str)).map(|close| format!("; did you mean `{close}`?")).unwrap_or_default()
}

fn sniff(path: &Path, mut file: &File) -> Result<Content> {
    use std::io::Seek;
    let mut head = Vec::with_capacity(4);
    let read = Read::take(&mut file, 4).read_to_end(&mut head).and_then(|_| file.rewind());
    read.with_context(|| format!("{}: cannot read", path.display()))?;
    Ok(match head.as_slice() {
        [0x1f, 0x8b, ..] => Content::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd] => Content::Zstd,
        b"PAR1" => Content::Parquet,
        [b'P', b'K', 3, 4] => Content::Zip,
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Content::Utf16,
        _ => Content::Other,
    })
}

fn check_content(path: &Path, compression: Compression, content: Content) -> Result<()> {
    let fits = match compression {
        Compression::Plain => content == Content::Other,
        Compression::Gzip => content == Content::Gzip,
        Compression::Zstd => content == Content::Zstd,
    };
    let by_name = match compression {
        Compression::Plain => "plain text",
        Compression::Gzip => "gzip",
        Compression::Zstd => "zstd",
    };
    ensure!(fits, "{}: the name says {by_name}, but the content is {}", path.display(), content.describe());
    Ok(())
}

impl Content {
    fn describe(self) -> &'static str {
        match self {
            Content::Gzip => "gzip data: name it .gz",
            Content::Zstd => "zstd data: name it .zst",
            Content::Parquet => "Parquet: name it .parquet or set format = \"parquet\"",
            Content::Zip => "a zip archive: unpack it",
            Content::Utf16 => "UTF-16 text: convert it to UTF-8",
            Content::Other => "neither gzip, zstd nor Parquet",
        }
    }
}

fn split_compression(path: &Path) -> (PathBuf, Compression) {
    match extension(path).as_str() {
        "gz" => (path.with_extension(""), Compression::Gzip),
        "zst" => (path.with_extension(""), Compression::Zstd),
        _ => (path.to_owned(), Compression::Plain),
    }
}

fn extension(path: &Path) -> String {
    path.extension().map(|extension| extension.to_string_lossy().to_lowercase()).unwrap_or_default()
}

/// What a packed file unpacks to, as long as that is plausible: a few bytes of zstd may stand for gigabytes.
struct Unpacked {
    decoder: Box<dyn Read + Send>,
    bytes: u64,
    packed_bytes: Arc<AtomicU64>,
}

/// What gzip cannot exceed.
const MOST_GROWTH: u64 = 1_100;
/// Below this nothing is suspicious.
const SMALL_BYTES: u64 = 64 << 20;

impl Read for Unpacked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.decoder.read(buffer)?;
        self.bytes += read as u64;
        if self.bytes > SMALL_BYTES && self.bytes / MOST_GROWTH > self.packed_bytes.load(Ordering::Relaxed) {
            let message = format!("it unpacks to more than {MOST_GROWTH} times its size; unpack it beforehand if that is right");
            return Err(io::Error::other(message));
        }
        Ok(read)
    }
}

struct Counted {
    file: File,
    bytes_read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.bytes_read.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}
