//! What all targets share: the parsers of the ordinary tests, compiled once.

#[path = "../../tests/parsers/mod.rs"]
pub mod parsers;

/// Lets panics unwind, as they do in programs that use the library, where libFuzzer would abort at each: the library catches panics of the `tokenizers`
/// crate, which are not printed. A panic that is not caught still ends the program.
pub fn unwind() {
    std::panic::set_hook(Box::new(|panic| {
        if !panic.location().is_some_and(|l| l.file().contains("/tokenizers-")) {
            eprintln!("{panic}");
        }
    }));
}
