//! [`Text`]: a text and its name.

use std::borrow::Cow;
use std::path::PathBuf;

use tersor_core::{Error, Result};

/// A text for calibration or evaluation, with a name for messages.
#[derive(Clone, Debug)]
pub struct Text {
    name: String,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    Given(String),
    File(PathBuf),
}

impl Text {
    /// Returns the text `content`. Messages call it `name`.
    pub fn new(name: impl Into<String>, content: impl Into<String>) -> Self {
        Self { name: name.into(), content: Content::Given(content.into()) }
    }

    /// Returns the text of a file, which is read when the text is needed. Its name is the path.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self { name: path.display().to_string(), content: Content::File(path) }
    }

    /// Returns the name of the text.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the content. Errors if it is in a file that cannot be read or is not UTF-8.
    pub fn read(&self) -> Result<Cow<'_, str>> {
        let path = match &self.content {
            Content::Given(text) => return Ok(text.into()),
            Content::File(path) => path,
        };
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let text = String::from_utf8(bytes);
        Ok(text.map_err(|e| Error::format(&self.name, format!("not UTF-8: {e}")))?.into())
    }
}
