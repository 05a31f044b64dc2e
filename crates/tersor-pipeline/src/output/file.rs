//! Files that are written: nothing but an earlier output of the same kind is replaced.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use tersor_core::{Error, Limits, Result, TensorSource};
use tersor_formats::{json as files, safetensors};

/// First line of a recipe file that this crate writes.
pub(crate) const RECIPE_HEAD: &str = "# Written by Tersor.\n";

/// Mark of an HTML page that this crate writes, near its beginning.
pub(crate) const PAGE_MARK: &str = "<meta name=\"generator\" content=\"Tersor\">";

/// Name of the tensor with the JSON description of a file of statistics.
pub(crate) const ABOUT: &str = "about";

/// Name of the tensor with the JSON description of a file of predictions.
pub(crate) const REFERENCE: &str = "reference";

/// What a file holds that this crate writes under a name that the user chooses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileKind {
    /// A plan, in JSON.
    Plan,
    /// A recipe, in TOML, that begins with [`RECIPE_HEAD`].
    Recipe,
    /// The measured effects of matrices, for budgets.
    Measurement,
    /// Statistics of activations.
    Statistics,
    /// An HTML page.
    Page,
    /// The rows of a comparison, in JSON.
    Rows,
    /// The figures of an evaluation, in JSON.
    Figures,
    /// The predictions of an original network.
    Reference,
}

impl FileKind {
    /// Returns what the file holds, for messages: `plan`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plan => "plan",
            Self::Recipe => "recipe that Tersor wrote",
            Self::Measurement => "measurement",
            Self::Statistics => "file of statistics",
            Self::Page => "report",
            Self::Rows => "comparison",
            Self::Figures => "evaluation",
            Self::Reference => "file of predictions",
        }
    }

    /// Returns whether a file is an earlier output of this kind, by its content. A file that cannot be read is none.
    pub fn matches(self, path: &Path) -> bool {
        let begins = |mark: &str, within: usize| {
            let read = fs::File::open(path).and_then(|f| {
                let mut head = Vec::new();
                std::io::Read::read_to_end(&mut std::io::Read::take(f, within as u64), &mut head)?;
                Ok(head)
            });
            read.is_ok_and(|head| head.windows(mark.len()).any(|w| w == mark.as_bytes()))
        };
        let json = |keys: &[&str]| {
            let found = if begins("{", 16) { files::read(path, &Limits::default()).ok() } else { None };
            found.is_some_and(|json: Json| keys.iter().all(|k| json.get(k).is_some()))
        };
        let described =
            |by: &str| safetensors::File::open(path, &Limits::default()).is_ok_and(|file| file.info(by).is_ok());
        match self {
            Self::Plan => json(&["recipe", "seed", "inputs"]),
            Self::Recipe => begins(RECIPE_HEAD, RECIPE_HEAD.len()),
            Self::Measurement => json(&["inputs", "matrices"]),
            Self::Statistics => described(ABOUT),
            Self::Reference => described(REFERENCE),
            Self::Page => begins(PAGE_MARK, 1024),
            Self::Rows => json(&["model", "rows"]),
            Self::Figures => json(&["weight_bytes", "peak_rss_bytes"]),
        }
    }
}

/// Errors unless a file of the kind `kind` may be written to `out`: nothing is there, or an earlier output of this kind, and `out` is none of the files
/// `inputs` that the work reads. Call it before the work begins.
pub fn check_file(out: &Path, kind: FileKind, inputs: &[&Path]) -> Result<()> {
    let refuse = |what: &str| Err(Error::format(out.display().to_string(), what));
    let target = resolved(out);
    if inputs.iter().any(|input| fs::canonicalize(input).is_ok_and(|i| Some(&i) == target.as_ref())) {
        return refuse("it is an input of the work; choose another name for the output");
    }
    match fs::symlink_metadata(out) {
        Err(_) => Ok(()),
        Ok(_) if out.is_dir() => refuse("it is a directory; name a file"),
        Ok(_) if kind.matches(out) => Ok(()),
        Ok(_) => refuse(&format!("it exists and is no earlier {}; remove it or choose another name", kind.name())),
    }
}

/// Errors if two outputs of the same work have the same name.
pub fn check_distinct(a: &Path, b: &Path) -> Result<()> {
    if resolved(a).is_some() && resolved(a) == resolved(b) {
        return Err(Error::format(
            a.display().to_string(),
            "two outputs have this name; choose another for one of them",
        ));
    }
    Ok(())
}

/// Returns the absolute path of a file that need not exist; None if its directory does not exist.
fn resolved(path: &Path) -> Option<PathBuf> {
    if let Ok(found) = fs::canonicalize(path) {
        return Some(found);
    }
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Some(fs::canonicalize(parent).ok()?.join(path.file_name()?))
}
