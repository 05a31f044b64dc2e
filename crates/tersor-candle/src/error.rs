//! [`Error`]: what can go wrong between candle and Tersor.

use candle_core::{DType, Device};

/// The result of a fallible function of this crate: Ok with a `T`, or an [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of Tersor or of candle, or a tensor that this crate does not take. `?` converts it to a [`candle_core::Error`] with the same
/// message, in functions that return [`candle_core::Result`].
///
/// ```
/// use tersor_candle::{Error, core};
/// let error = Error::from(core::Error::missing("w", "the model"));
/// assert!(matches!(&error, Error::Tersor(core::Error::Missing { .. })));
/// assert_eq!(candle_core::Error::from(error).to_string(), "`w` is missing from the model");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An error of Tersor: shapes, values that are not finite, names, files.
    #[error(transparent)]
    Tersor(#[from] tersor_core::Error),
    /// An error of candle.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A tensor on another device than the CPU.
    #[error("{what} is on the device {device}; Tersor runs on the CPU: move it with `to_device(&Device::Cpu)`")]
    Device {
        /// The tensor.
        what: &'static str,
        /// The device that it is on.
        device: String,
    },
    /// A tensor with elements of a type that is not taken.
    #[error("{what} has elements of the type {found:?}; convert it with `to_dtype` to {expected}")]
    DType {
        /// The tensor.
        what: &'static str,
        /// The types that are taken.
        expected: &'static str,
        /// The type of its elements.
        found: DType,
    },
}

impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(own) => own,
            other => Self::Wrapped(Box::new(other)),
        }
    }
}

impl Error {
    /// Returns this error as one of Tersor, for functions that return [`tersor_core::Result`]. The errors of candle, of devices and of
    /// types become [`Numerical`](tersor_core::Error::Numerical), with the same message.
    pub fn into_tersor(self) -> tersor_core::Error {
        match self {
            Error::Tersor(own) => own,
            other => tersor_core::Error::Numerical(other.to_string()),
        }
    }
}

/// Returns an error of Tersor as one of candle.
pub(crate) fn candle(error: tersor_core::Error) -> candle_core::Error {
    Error::Tersor(error).into()
}

/// Errors with [`Error::Device`] unless `device` is the CPU.
pub(crate) fn check_cpu(what: &'static str, device: &Device) -> Result<()> {
    if device.is_cpu() { Ok(()) } else { Err(on_device(what, format!("{:?}", device.location()))) }
}

pub(crate) fn on_device(what: &'static str, device: impl Into<String>) -> Error {
    Error::Device { what, device: device.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_keep_their_message_both_ways() {
        let text = on_device("the input", "Cuda { gpu_id: 0 }").to_string();
        assert!(text.contains("gpu_id: 0") && text.contains("to_device(&Device::Cpu)"), "{text}");
        let own: candle_core::Error = on_device("the input", "Cuda { gpu_id: 0 }").into();
        assert_eq!(own.to_string(), text);
        assert_eq!(on_device("the input", "Cuda { gpu_id: 0 }").into_tersor().to_string(), text);
        let back = Error::from(candle_core::Error::Msg("no".into()));
        assert!(matches!(candle_core::Error::from(back), candle_core::Error::Msg(m) if m == "no"));
        assert!(check_cpu("the input", &Device::Cpu).is_ok());
    }
}
