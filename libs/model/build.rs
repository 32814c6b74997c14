//! Writes the place of libtorch into this package's test programs, so that they start without `LD_LIBRARY_PATH`.
//!
//! A link argument reaches only the targets of the package that prints it: every package with a program that links
//! libtorch needs these lines in a build script of its own (the worker's does the same).
#![allow(clippy::print_stdout)] // this is how a build script speaks to cargo

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    if let Ok(libtorch) = std::env::var("LIBTORCH") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{libtorch}/lib");
    }
}
