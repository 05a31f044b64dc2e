//! [`Text`]: a text with a name.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tersor_core::{Error, Result};
use tersor_formats::Content;

/// A text for calibration or evaluation, given as a string or as a file, with a name for messages. Clones share the tokens into which the text was
/// cut last, so that it is not tokenized again for the same model and windows.
#[derive(Clone, Debug)]
pub struct Text {
    name: String,
    source: Source,
    tokens: Arc<Mutex<Option<(String, Tokens)>>>,
}

/// The tokens of each window of a text.
pub(crate) type Tokens = Arc<Vec<Vec<u32>>>;

#[derive(Clone, Debug)]
enum Source {
    Given(String),
    File(PathBuf),
}

impl Text {
    /// Returns the text `content`. Error messages call it `name`.
    pub fn new(name: impl Into<String>, content: impl Into<String>) -> Self {
        Self { name: name.into(), source: Source::Given(content.into()), tokens: Default::default() }
    }

    /// Returns the text of the file at `path`, which is read each time the text is needed and not before. Error messages call it by its path.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self { name: path.display().to_string(), source: Source::File(path), tokens: Default::default() }
    }

    /// Returns the name of the text in messages; for a file, its path.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the text of this content under the same name, which shares the tokens.
    pub(crate) fn of_content(&self, content: String) -> Self {
        Self { name: self.name.clone(), source: Source::Given(content), tokens: self.tokens.clone() }
    }

    /// Returns the text; for a file, reads it.
    ///
    /// # Errors
    ///
    /// An [`Error::Io`] if the file cannot be read. An [`Error::Format`] with its path if it is a directory, a file of another kind, such as a model,
    /// or not UTF-8. A text that was given as a string cannot fail.
    pub fn read(&self) -> Result<Cow<'_, str>> {
        let path = match &self.source {
            Source::Given(text) => return Ok(text.into()),
            Source::File(path) => path,
        };
        const WANTED: &str = "a text in UTF-8";
        if path.is_dir() {
            return Err(Content::Directory.instead_of(WANTED, path));
        }
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        match Content::of(&bytes) {
            Content::Text | Content::Other => {}
            other => return Err(other.instead_of(WANTED, path)),
        }
        let text = String::from_utf8(bytes);
        Ok(text.map_err(|e| Error::format(&self.name, format!("it is no text in UTF-8: {e}")))?.into())
    }

    /// Returns the tokens that `cut` makes of the text. They are kept for the next call with the same `key`, which has everything that they depend on
    /// beside the text. Errors if `cut` does.
    pub(crate) fn cut(&self, key: String, cut: impl FnOnce() -> Result<Vec<Vec<u32>>>) -> Result<Tokens> {
        let mut known = self.tokens.lock().unwrap_or_else(|e| e.into_inner());
        if let Some((_, tokens)) = known.as_ref().filter(|(k, _)| *k == key) {
            return Ok(tokens.clone());
        }
        let tokens = Arc::new(cut()?);
        *known = Some((key, tokens.clone()));
        Ok(tokens)
    }
}
