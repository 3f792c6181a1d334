//! How the library is linked.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Its fork handlers must not go while somebody forks: a `dlclose` leaves it where it is.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    // It never unwinds, but the standard library asks for what does. That is linked in, and is nobody else's (it is not
    // exported), so that libgcc_s need not be there.
    println!("cargo:rustc-cdylib-link-arg=-Wl,--whole-archive,-l:libgcc_eh.a,--no-whole-archive");
}
