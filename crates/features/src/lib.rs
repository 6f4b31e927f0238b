//! No code: the manifest is the point (see `CONTRIBUTING.md`, "Features").
