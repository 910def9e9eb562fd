/** The server's API, as docs/http-api.md describes it. */
import type { Geometry, Mask, Point, Box } from "./model";
import { areaOf } from "./model";
import type { Picture } from "./picture";
import { Problem, UNREACHABLE, isAbort, problemFor, problemOf } from "./problem";

interface Feature {
  geometry: Geometry;
  properties: { quality: number };
}

type StreamEvent =
  | { event: "progress"; done: number; total: number }
  | ({ event: "feature" } & Feature)
  | { event: "done" }
  | { event: "error"; error: { code: string; message: string } };

/** The fields of a request besides the picture. */
export type Fields = Record<string, unknown>;

/** The page may be below `/key/<key>/`, so every address is relative to the page's own. */
const BASE = new URL(".", document.baseURI);

const ATTEMPTS = 4;

export function address(path: string): URL {
  return new URL(path, BASE);
}

/** Return the model types that are loaded. */
export async function modelTypes(): Promise<string[]> {
  const response = await ask("sam/weights/", { method: "GET" });
  const weights = (await response.json()) as { type: string }[];
  return [...new Set(weights.map((one) => one.type))];
}

export function promptFields(
  type: string,
  prompt: { box: Box | null; points: Point[] },
  three: boolean,
): Fields {
  const fields: Fields = { type };
  if (prompt.box !== null) fields["bbox"] = prompt.box;
  if (prompt.points.length > 0) {
    fields["point_coords"] = prompt.points.map(({ x, y }) => [x, y]);
    fields["point_labels"] = prompt.points.map(({ label }) => label);
  }
  if (three) fields["multimask_output"] = true;
  return fields;
}

/** The pictures that the server has answered for, each with the model type. */
const known = new WeakMap<Picture, Set<string>>();

export async function segment(
  picture: Picture,
  fields: Fields,
  signal: AbortSignal,
): Promise<Mask[]> {
  const response = await send("sam/", picture, fields, signal);
  return ((await response.json()) as Feature[]).map(maskOf);
}

/** Find every object. `onProgress` learns how many of the points are done. */
export async function automask(
  picture: Picture,
  fields: Fields,
  signal: AbortSignal,
  onProgress: (done: number, total: number) => void,
): Promise<Mask[]> {
  const response = await send("sam/automask/?stream=1", picture, fields, signal);
  const masks: Mask[] = [];
  for await (const line of linesOf(response)) {
    const event = JSON.parse(line) as StreamEvent;
    if (event.event === "progress") onProgress(event.done, event.total);
    else if (event.event === "feature") masks.push(maskOf(event));
    else if (event.event === "done") return masks;
    else throw problemFor(500, event.error.code, event.error.message);
  }
  throw new Problem("The connection broke before all objects were found.", "Try again.");
}

/** Send the picture's digest if the server knows the picture, else the picture. */
async function send(
  path: string,
  picture: Picture,
  fields: Fields,
  signal: AbortSignal,
): Promise<Response> {
  const types = known.get(picture) ?? new Set<string>();
  known.set(picture, types);
  const type = String(fields["type"]);
  if (types.has(type)) {
    const digest = await picture.digest;
    if (digest !== null) {
      const body = JSON.stringify({ ...fields, b64img: digest });
      const headers = { "Content-Type": "application/json" };
      try {
        return await ask(path, { method: "POST", headers, body, signal });
      } catch (error) {
        if (!(error instanceof Problem) || error.status !== 409) throw error;
        types.delete(type);
      }
    }
  }
  const form = new FormData();
  form.append("request", JSON.stringify(fields));
  form.append("image", picture.file, "picture");
  const response = await ask(path, { method: "POST", body: form, signal });
  types.add(type);
  return response;
}

/** Send a request, again if the server is busy. */
async function ask(path: string, init: RequestInit): Promise<Response> {
  for (let attempt = 1; ; attempt++) {
    let response: Response;
    try {
      response = await fetch(address(path), { ...init, cache: "no-store" });
    } catch (error) {
      if (isAbort(error)) throw error;
      throw UNREACHABLE();
    }
    if (response.ok) return response;
    const wait = Number(response.headers.get("Retry-After"));
    const busy = response.status === 503 || response.status === 429;
    if (!busy || attempt === ATTEMPTS || !(wait <= 5)) throw await problemOf(response);
    await pause(1000 * Math.max(wait, 0.2), init.signal ?? null);
  }
}

function pause(ms: number, signal: AbortSignal | null): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("Replaced by a newer request.", "AbortError"));
    });
  });
}

async function* linesOf(response: Response): AsyncGenerator<string> {
  if (response.body === null) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop() ?? "";
      yield* lines.filter((line) => line !== "");
    }
  } catch (error) {
    if (isAbort(error)) throw error;
    throw UNREACHABLE();
  }
  if (rest !== "") yield rest;
}

function maskOf(feature: Feature): Mask {
  const { geometry, properties } = feature;
  return { geometry, quality: properties.quality, area: areaOf(geometry) };
}
