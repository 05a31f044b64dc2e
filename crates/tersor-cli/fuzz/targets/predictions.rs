#![no_main]

libfuzzer_sys::fuzz_target!(init: tersor_fuzz::unwind(), |bytes: &[u8]| {
    (tersor_fuzz::parsers::parser("predictions").parse)(bytes);
});
