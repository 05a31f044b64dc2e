//! What a file holds, by its first bytes: for messages about a file of another kind than the one that is expected.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use tersor_core::{Error, Result};

/// Number of bytes from the beginning of a file that [`describe`] reads.
const HEAD: u64 = 4096;

/// What a model is, as the remedy in messages.
const MODEL: &str = "a model is a directory with safetensors files and `config.json`, or a `.gguf` file";

/// What a file holds, as far as its first bytes tell. The display form is a phrase such as `a PNG image`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// A directory.
    Directory,
    /// No bytes.
    Empty,
    /// A safetensors file: eight bytes of length, then a JSON object.
    Safetensors,
    /// A GGUF file: a model, or an importance matrix of llama.cpp.
    Gguf,
    /// A zip archive, the form of PyTorch's checkpoints.
    Zip,
    /// A Python pickle, the form of PyTorch's older checkpoints.
    Pickle,
    /// An ONNX model.
    Onnx,
    /// A PNG image.
    Png,
    /// A JPEG image.
    Jpeg,
    /// A text that stands for a file in Git LFS.
    LfsPointer,
    /// A text in UTF-8.
    Text,
    /// Anything else.
    Other,
}

/// Returns what is at `path`, as far as the first bytes of the file tell. Only a regular file is read. Errors if there is nothing at `path`, or the
/// file cannot be read.
///
/// ```
/// use tersor_formats::{Content, describe};
/// let file = tempfile::NamedTempFile::new().unwrap();
/// std::fs::write(&file, b"PK\x03\x04data.pkl").unwrap();
/// assert_eq!(describe(file.path()).unwrap(), Content::Zip);
/// assert_eq!(Content::Png.to_string(), "a PNG image");
/// ```
pub fn describe(path: &Path) -> Result<Content> {
    let io = |e| Error::io(path, e);
    let meta = std::fs::metadata(path).map_err(io)?;
    if meta.is_dir() {
        return Ok(Content::Directory);
    }
    if !meta.is_file() {
        return Ok(Content::Other);
    }
    let mut head = Vec::new();
    File::open(path).map_err(io)?.take(HEAD).read_to_end(&mut head).map_err(io)?;
    Ok(Content::of(&head))
}

impl Content {
    /// Returns what bytes are the beginning of. Any number of bytes is looked at; 4096 are enough.
    pub fn of(bytes: &[u8]) -> Self {
        let head = &bytes[..bytes.len().min(HEAD as usize)];
        match head {
            [] => Self::Empty,
            // The version that follows is 1 to 3, in either byte order.
            [b'G', b'G', b'U', b'F', rest @ ..] if rest.is_empty() || rest.iter().take(4).any(|b| *b == 0) => {
                Self::Gguf
            }
            [_, _, _, _, _, _, _, 0, b'{', ..] => Self::Safetensors,
            [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => Self::Zip,
            // The version of the format, then an operation.
            [0x80, 2..=5, 1..=255, ..] => Self::Pickle,
            [0x89, b'P', b'N', b'G', ..] => Self::Png,
            [0xff, 0xd8, 0xff, ..] => Self::Jpeg,
            // The version of the format, then the tag of another field of the model.
            [8, 1..=127, 0x12 | 0x1a | 0x22 | 0x28 | 0x32 | 0x3a | 0x42, ..] => Self::Onnx,
            _ if head.starts_with(b"version https://git-lfs") => Self::LfsPointer,
            _ if is_text(head) => Self::Text,
            _ => Self::Other,
        }
    }

    /// Returns the error that the file or directory at `path` holds this, where `wanted` is expected: a phrase such as `a text in UTF-8`, with the
    /// remedy where there is one.
    pub fn instead_of(self, wanted: &str, path: &Path) -> Error {
        let fetch = if self == Self::LfsPointer { " (`git lfs pull` fetches the file)" } else { "" };
        Error::format(path.display().to_string(), format!("it is {self}{fetch}, where {wanted} is expected"))
    }

    /// Returns the error that the file or directory at `path` holds this and is no model, with the way to a model.
    pub fn instead_of_model(self, path: &Path) -> Error {
        let remedy = match self {
            Self::Zip | Self::Pickle => {
                "load it with transformers and save it with `save_pretrained`, which writes safetensors"
            }
            Self::Onnx => "ONNX is not read; take the safetensors files that it was exported from",
            Self::LfsPointer => "`git lfs pull` fetches the file",
            _ => MODEL,
        };
        Error::format(path.display().to_string(), format!("it is {self} and no model; {remedy}"))
    }

    /// Returns whether the first bytes show that a file is no file of weights, neither safetensors nor GGUF. False if they do not tell.
    pub fn is_no_weights(self) -> bool {
        !matches!(self, Self::Safetensors | Self::Gguf | Self::Other)
    }
}

/// Returns the error that the directory `dir` has no safetensors file, with the file of another format that it has instead, if there is one.
pub(crate) fn no_weights_in(dir: &Path) -> Result<Error> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        names.push(entry.map_err(|e| Error::io(dir, e))?.path());
    }
    names.sort();
    let file = dir.display().to_string();
    for path in names {
        let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
        if !["gguf", "bin", "pt", "pth", "ckpt", "onnx"].contains(&extension.as_str()) || !path.is_file() {
            continue;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        match describe(&path)? {
            Content::Gguf => {
                return Ok(Error::format(file, format!("it has no safetensors file; give its file `{name}`")));
            }
            content @ (Content::Zip | Content::Pickle | Content::Onnx) => {
                let Error::Format { what, .. } = content.instead_of_model(&path) else { continue };
                let what = what.strip_prefix("it").unwrap_or(&what).to_string();
                return Ok(Error::format(file, format!("it has no safetensors file; `{name}`{what}")));
            }
            _ => {}
        }
    }
    Ok(Error::format(file, format!("it has no safetensors file, such as `model.safetensors`; {MODEL}")))
}

/// Returns whether bytes are the beginning of a text in UTF-8, without control characters that texts do not have.
fn is_text(head: &[u8]) -> bool {
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        // The last character may be cut off.
        Err(e) if e.error_len().is_none() && head.len() as u64 == HEAD => {
            std::str::from_utf8(&head[..e.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return false,
    };
    !text.is_empty()
        && text.chars().all(|c| !c.is_ascii_control() || matches!(c, '\t' | '\n' | '\r' | '\x0b' | '\x0c' | '\x1b'))
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Directory => "a directory",
            Self::Empty => "an empty file",
            Self::Safetensors => "a safetensors file",
            Self::Gguf => "a GGUF file",
            Self::Zip => "a zip archive, such as a PyTorch checkpoint,",
            Self::Pickle => "a Python pickle, such as a PyTorch checkpoint,",
            Self::Onnx => "an ONNX model",
            Self::Png => "a PNG image",
            Self::Jpeg => "a JPEG image",
            Self::LfsPointer => "a pointer of Git LFS",
            Self::Text => "a text",
            Self::Other => "a file of an unknown kind",
        })
    }
}
