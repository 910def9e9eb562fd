/** Puts the page together. */
import { address, modelTypes } from "./api";
import { button, byId, make } from "./dom";
import { Editor } from "./editor";
import { coco, download, geojson } from "./exports";
import type { Item } from "./model";
import { Keyboard } from "./keyboard";
import { labelPng } from "./label_png";
import { Panel } from "./panel";
import { Problem, UNREACHABLE } from "./problem";
import { curl, python } from "./snippets";
import { Viewer, type Tool } from "./viewer";

const target = byId("viewer");
/** The objects that were downloaded last. */
let saved: Item[] | null = null;
const editor = new Editor(show, complain);
const viewer = new Viewer(target, {
  box: (box) => editor.box(box),
  point: (point) => editor.point(point),
  hover: (id) => editor.hover(id),
  select: (id) => editor.select(id),
});
const panel = new Panel(editor);
new Keyboard(editor, viewer);

function show(): void {
  if (editor.picture !== null) viewer.show(editor.now);
  viewer.highlight(editor.hovered, editor.selected);
  panel.show();
}

function complain(problem: unknown): void {
  const known = problem instanceof Problem ? problem : new Problem(String(problem));
  byId("problem-text").textContent = known.message;
  byId("problem-advice").textContent = known.advice;
  byId("retry").hidden = editor.now.draft?.failed !== true;
  byId("problem").hidden = false;
  if (!(problem instanceof Problem)) console.error(problem);
}

async function open(file: File | null | undefined): Promise<void> {
  if (!file) return;
  byId("problem").hidden = true;
  try {
    if (editor.type === "") await findModels();
    if (!(await editor.open(file))) return;
  } catch (error) {
    complain(error);
    return;
  }
  const { picture } = editor;
  if (picture === null) return;
  byId("start").hidden = true;
  target.hidden = byId("tools").hidden = false;
  // A name may be written from right to left, and the size beside it is not.
  byId("picture-name").replaceChildren(make("bdi", "", picture.name), ` · ${picture.width} × ${picture.height}`);
  viewer.open(picture);
  show();
  target.focus();
}

/** Open the first of several files, and say what becomes of the others. */
async function openOne(files: FileList | undefined): Promise<void> {
  const file = files?.[0];
  if (files === undefined || file === undefined) return;
  await open(file);
  if (files.length === 1 || !byId("problem").hidden) return;
  const command = "samserve automask FOLDER -o out";
  const advice = `For a whole folder, use the command “${command}”.`;
  complain(new Problem(`The page shows one picture at a time: “${file.name}”.`, advice));
}

async function findModels(): Promise<void> {
  const select = byId<HTMLSelectElement>("model");
  const types = await modelTypes();
  if (types.length === 0) {
    throw new Problem("The server has no model yet.", "It may still be starting. Try again in a moment.");
  }
  select.replaceChildren(...types.map((type) => new Option(type, type)));
  select.disabled = types.length < 2;
  editor.useType(select.value);
  show();
}

async function openSample(name: string): Promise<void> {
  let response: Response;
  try {
    response = await fetch(address(`page/samples/${name}`));
  } catch {
    complain(UNREACHABLE());
    return;
  }
  const blob = await response.blob();
  await open(new File([blob], name, { type: blob.type }));
}

function useTool(tool: Tool): void {
  viewer.tool = tool;
  target.classList.toggle("moving", tool === "move");
  for (const id of ["draw", "move"]) byId(id).setAttribute("aria-pressed", String(id === tool));
}

async function save(kind: "geojson" | "coco" | "labels"): Promise<void> {
  const { picture, now } = editor;
  if (picture === null) return;
  const stem = picture.name.replace(/\.[^.]*$/, "");
  try {
    if (kind === "geojson") download(geojson(now), `${stem}.geojson`, "application/geo+json");
    else if (kind === "coco") download(coco(now, picture), `${stem}.coco.json`, "application/json");
    else {
      const png = await labelPng(now.items, picture.width, picture.height);
      download(png, `${stem}.labels.png`, "image/png");
    }
    saved = now.items;
  } catch (error) {
    complain(error);
  }
}

async function copy(id: "curl" | "python"): Promise<void> {
  const { asked, picture } = editor;
  if (asked === null || picture === null) return;
  const text = id === "curl" ? curl(asked, picture.name) : python(asked, picture.name);
  const element = byId(id);
  const name = element.textContent;
  try {
    await copyText(text);
  } catch (error) {
    complain(error);
    return;
  }
  element.textContent = "Copied";
  setTimeout(() => (element.textContent = name), 1500);
}

async function copyText(text: string): Promise<void> {
  if (globalThis.isSecureContext) return navigator.clipboard.writeText(text);
  // On plain HTTP, browsers copy only what is selected.
  const area = make("textarea", "hidden");
  area.value = text;
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  if (!copied) throw new Problem("The browser does not let this page copy.", "Open it over HTTPS.");
}

function listen(): void {
  const file = byId<HTMLInputElement>("file");
  const help = byId<HTMLDialogElement>("help-text");
  file.addEventListener("change", () => {
    void open(file.files?.[0]);
    file.value = "";
  });
  for (const id of ["open", "open-here"]) button(id, () => file.click());
  for (const sample of document.querySelectorAll<HTMLElement>("[data-sample]")) {
    sample.addEventListener("click", () => void openSample(sample.dataset["sample"] ?? ""));
  }
  button("problem-close", () => (byId("problem").hidden = true));
  button("retry", () => {
    byId("problem").hidden = true;
    editor.retry();
  });
  button("undo", () => editor.undo());
  button("redo", () => editor.redo());
  button("keep", () => editor.keep());
  button("discard", () => editor.discard());
  button("three", () => editor.showThree());
  button("draw", () => useTool("draw"));
  button("move", () => useTool("move"));
  const background = button("background", () => {
    viewer.clicksAreBackground = !viewer.clicksAreBackground;
    background.setAttribute("aria-pressed", String(viewer.clicksAreBackground));
  });
  button("zoom-in", () => viewer.zoom(1.5));
  button("zoom-out", () => viewer.zoom(1 / 1.5));
  button("fit", () => viewer.fit());
  const density = byId<HTMLSelectElement>("density");
  button("automask", () => void editor.findAll(Number(density.value)));
  button("stop", () => editor.stop());
  for (const id of ["geojson", "coco", "labels"] as const) button(id, () => void save(id));
  for (const id of ["curl", "python"] as const) button(id, () => void copy(id));
  button("help", () => {
    help.showModal();
    help.scrollTop = 0; // the browser scrolls to the link at the end, which gets the focus
  });
  const model = byId<HTMLSelectElement>("model");
  model.addEventListener("change", () => editor.useType(model.value));
  byId("new-class").addEventListener("submit", (event) => {
    event.preventDefault();
    const name = byId<HTMLInputElement>("class-name");
    if (name.value.trim() !== "") editor.addClass(name.value.trim());
    name.value = "";
  });
  listenToFiles();
  globalThis.addEventListener("beforeunload", (event) => {
    // Objects that were not downloaded would be lost.
    if (editor.now.items.length > 0 && editor.now.items !== saved) event.preventDefault();
  });
}

/** Take files that are dropped anywhere on the page, or pasted. */
function listenToFiles(): void {
  const stage = byId("stage");
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    stage.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) stage.classList.remove("dropping");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    stage.classList.remove("dropping");
    void openOne(event.dataTransfer?.files);
  });
  document.addEventListener("paste", (event) => void openOne(event.clipboardData?.files));
}

listen();
show();
findModels().catch(complain);
