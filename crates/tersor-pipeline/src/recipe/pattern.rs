//! Which matrices a rule is for, and which layers a cache is for.

use std::fmt;

use tersor_core::Role;

/// A pattern by which a rule of a recipe selects matrices: a role such as `@down` (what a matrix computes), or a tensor name with wildcards.
#[derive(Clone, PartialEq, Debug)]
pub struct Pattern {
    pub(super) text: String,
    what: What,
}

#[derive(Clone, PartialEq, Debug)]
enum What {
    Name(glob::Pattern),
    Roles(&'static [Role]),
}

/// The roles by their words in recipes.
const ROLES: [(&str, &[Role]); 10] = [
    (
        "@linear",
        &[Role::Query, Role::Key, Role::Value, Role::AttentionOutput, Role::Gate, Role::Up, Role::Down, Role::Linear],
    ),
    ("@q", &[Role::Query]),
    ("@k", &[Role::Key]),
    ("@v", &[Role::Value]),
    ("@o", &[Role::AttentionOutput]),
    ("@gate", &[Role::Gate]),
    ("@up", &[Role::Up]),
    ("@down", &[Role::Down]),
    ("@head", &[Role::Head]),
    ("@embedding", &[Role::Embedding]),
];

impl Pattern {
    /// Parses a pattern. A text with `@` in front is a role: `@q`, `@k`, `@v`, `@o`, `@gate`, `@up`, `@down`, `@head`, `@embedding`, or `@linear` for
    /// any role but embedding and head. Any other text is a tensor name in which `*` stands for any characters, `?` for one character and `[abc]` for
    /// one of those listed, as in the crate `glob`.
    ///
    /// # Errors
    ///
    /// A sentence that says what is wrong, if the role is unknown or the wildcards are invalid.
    pub fn new(text: &str) -> Result<Self, String> {
        let what = if text.starts_with('@') {
            let roles = ROLES.iter().find(|(word, _)| *word == text).map(|(_, roles)| *roles);
            let all = || ROLES.map(|(word, _)| word).join(", ");
            What::Roles(roles.ok_or_else(|| format!("there is no role `{text}`; roles are {}", all()))?)
        } else {
            What::Name(glob::Pattern::new(text).map_err(|e| format!("`{text}` is no pattern: {e}"))?)
        };
        Ok(Self { text: text.to_string(), what })
    }

    /// Returns the word of a role; None for a role without one.
    pub(super) fn word(role: Role) -> Option<&'static str> {
        ROLES.iter().find(|(_, roles)| *roles == [role]).map(|(word, _)| *word)
    }

    /// Returns the pattern as it is written in a recipe.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns whether the pattern matches the matrix of the tensor name `tensor` that computes `roles`. A pattern of a role matches if it stands for
    /// at least one of these roles, and does not look at the name; a pattern of a name does not look at the roles.
    pub fn matches(&self, tensor: &str, roles: &[Role]) -> bool {
        match &self.what {
            What::Name(pattern) => pattern.matches(tensor),
            What::Roles(own) => roles.iter().any(|r| own.contains(r)),
        }
    }
}

/// The layers of a decoder that a form of cache is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layers {
    /// All layers.
    All,
    /// The layers from the first index to the last one, both included, counted from 0.
    Range(usize, usize),
}

impl Layers {
    /// Parses the text of a recipe: `*` for all layers, `layer 3` for one, or `layers 0-3` for a range with both ends included. Returns None for any
    /// other text, and for a range whose first index is larger than its last.
    pub fn parse(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(Self::All);
        }
        if let Some(layer) = text.strip_prefix("layer ") {
            let layer = layer.parse().ok()?;
            return Some(Self::Range(layer, layer));
        }
        let (first, last) = text.strip_prefix("layers ")?.split_once('-')?;
        let (first, last) = (first.parse().ok()?, last.parse().ok()?);
        (first <= last).then_some(Self::Range(first, last))
    }

    /// Returns whether the layer of the index `layer`, counted from 0, is among these layers.
    pub fn contains(self, layer: usize) -> bool {
        match self {
            Self::All => true,
            Self::Range(first, last) => (first..=last).contains(&layer),
        }
    }
}

/// Writes the layers as a recipe has them: `*`, `layer 3` or `layers 0-3`.
impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Range(first, last) if first == last => write!(f, "layer {first}"),
            Self::Range(first, last) => write!(f, "layers {first}-{last}"),
        }
    }
}
