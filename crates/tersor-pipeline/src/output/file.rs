//! The guard of output files: only an earlier output of the same kind is replaced.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use tersor_core::{Error, Limits, Result, TensorSource};
use tersor_formats::{json as files, safetensors};

/// The first line of a recipe file that this crate writes.
pub(crate) const RECIPE_HEAD: &str = "# Written by Tersor.\n";

/// The mark of an HTML page that this crate writes, in its first 1024 bytes.
pub(crate) const PAGE_MARK: &str = "<meta name=\"generator\" content=\"Tersor\">";

/// The name of the tensor that holds the JSON description of a file of statistics.
pub(crate) const ABOUT: &str = "about";

/// The name of the tensor that holds the JSON description of a file of predictions.
pub(crate) const REFERENCE: &str = "reference";

/// The kind of an output file that this crate writes under a name that the user chooses. [`check_file`] lets an output replace a file of its own kind
/// only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileKind {
    /// A plan, in JSON ([`Plan::save`](crate::Plan::save)).
    Plan,
    /// A recipe, in TOML, that begins with a comment that this crate writes. A recipe file that a user wrote is not of this kind.
    Recipe,
    /// The measured effect of each matrix on the predictions, in JSON, for budgets.
    Measurement,
    /// Statistics of the inputs of matrices, in safetensors ([`Plan::gather`](crate::Plan::gather)).
    Statistics,
    /// An HTML page ([`report::save`](crate::report::save)).
    Page,
    /// The rows of a comparison of recipes, in JSON ([`report::ROWS`](crate::report::ROWS)).
    Rows,
    /// The figures of an evaluation, in JSON ([`evaluate::save`](crate::evaluate::save)).
    Figures,
    /// The predictions of an original network on an evaluation text, in safetensors.
    Reference,
}

impl FileKind {
    /// Returns what messages call a file of this kind, such as `plan`.
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

    /// Returns whether the content of the file `path` is that of an earlier output of this kind. Returns false if the file cannot be read.
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

/// Checks that an output of the kind `kind` may be written to the file `out`: nothing is there, or an earlier output of this kind. `inputs` are the
/// paths that the work reads; `out` must not be one of them. It is to be called before the work begins. It does not check that the directory of `out`
/// exists.
///
/// # Errors
///
/// An [`Error::Format`] with the path if `out` is one of `inputs`, a directory, or a file of another kind.
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

/// Checks that the outputs `a` and `b` of the same work are different files. Neither needs to exist. A path whose directory does not exist counts as
/// different from any other.
///
/// # Errors
///
/// An [`Error::Format`] with the path `a` if both are the same file.
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
