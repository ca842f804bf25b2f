// Looks at report pages in a headless browser: screenshots, what sticks out, accessibility (axe-core).
//
// Not part of the tests, as it needs node and Chromium. In a folder of your own:
//
//   npm install playwright-core axe-core
//   node .../tools/check_page.mjs OUT PAGE.html ...
//
// Writes OUT/<page>-<width>-<scheme>.png, whole pages, and fails where axe finds something serious,
// the page is wider than the window, or anything is written to the console.
import { createRequire } from "node:module";
import { basename, resolve } from "node:path";

const require = createRequire(resolve("package.json"));
const { chromium } = require("playwright-core");
const [out, ...pages] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM || "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu"],
});
let failed = false;
for (const file of pages)
  for (const width of [1280, 390])
    for (const colorScheme of ["light", "dark"]) {
      const viewport = { width, height: width < 500 ? 844 : 800 };
      const context = await browser.newContext({ viewport, colorScheme });
      const page = await context.newPage();
      const said = [];
      page.on("console", (message) => said.push(message.text()));
      page.on("pageerror", (error) => said.push(String(error)));
      await page.goto("file://" + resolve(file));
      const name = `${basename(file, ".html")}-${width}-${colorScheme}`;
      await page.screenshot({ path: resolve(out, name + ".png"), fullPage: true });
      const [height, wider] = await page.evaluate(() => {
        const root = document.documentElement;
        return [root.scrollHeight, root.scrollWidth - root.clientWidth];
      });
      // What is folded is looked at, too.
      await page.evaluate(() => document.querySelectorAll("details").forEach((d) => (d.open = true)));
      await page.addScriptTag({ path: require.resolve("axe-core/axe.min.js") });
      const { violations } = await page.evaluate(() => axe.run());
      const serious = violations.filter((v) => ["serious", "critical"].includes(v.impact));
      console.log(`${name}: ${(height / viewport.height).toFixed(1)} screens`);
      for (const v of violations) console.log(`  ${v.impact} ${v.id}: ${v.nodes[0].html}`);
      for (const line of said) console.log(`  console: ${line}`);
      if (wider > 0) console.log(`  ${wider} pixels wider than the window`);
      failed ||= serious.length > 0 || said.length > 0 || wider > 0;
      await context.close();
    }
await browser.close();
process.exit(failed ? 1 : 0);
