import { defineConfig } from "vite";

// The page is served by `backglass studio` itself under a policy that allows its own files only:
// nothing is inlined, nothing is fetched from elsewhere.  File names carry a hash of the content,
// so the same sources give the same bytes.
export default defineConfig({
  base: "/",
  build: {
    outDir: "../backglass/debugger/static",
    emptyOutDir: true,
    target: "es2022",
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    reportCompressedSize: true,
  },
  server: { proxy: { "/api": process.env.STUDIO ?? "http://127.0.0.1:8765" } },
});
