/** Something that went wrong, in plain words, and what a person can do about it. */
export class Problem extends Error {
  constructor(
    message: string,
    readonly advice = "",
    readonly status = 0,
  ) {
    super(message);
  }
}

interface Refusal {
  error?: { code?: string; message?: string; field?: string | null };
}

/** Return what the server's refusal means. */
export async function problemOf(response: Response): Promise<Problem> {
  const text = await response.text();
  let refusal: Refusal = {};
  try {
    refusal = JSON.parse(text) as Refusal;
  } catch {
    // A proxy in between answered with a page of its own; the status says what there is to say.
  }
  return problemFor(response.status, refusal.error?.code, refusal.error?.message);
}

export function problemFor(status: number, code = "", message = ""): Problem {
  const [words, advice] = inWords(status, code);
  // The server speaks of bodies and bytes there.
  const plain = code === "unauthorized" || (status === 413 && message.startsWith("The body"));
  const limit = /\((\S+ MiB)\)/.exec(message)?.[1];
  if (plain && limit !== undefined) {
    return new Problem(`The picture's file is larger than ${limit}, this server's limit.`, advice, status);
  }
  const said = plain ? "" : message;
  return new Problem(said || words, advice, status);
}

function inWords(status: number, code: string): [words: string, advice: string] {
  if (status === 401 || status === 403) {
    return [
      "This server wants a key, or your key is wrong.",
      `Open the page as ${location.origin}/key/YOUR-KEY/ with a key from whoever runs the server.`,
    ];
  }
  if (status === 404) return ["The server does not know this model.", "Choose another model."];
  if (status === 413) {
    return ["The picture is too large for this server.", "Crop it, or scale it down."];
  }
  if (status === 422 || status === 400) {
    const advice = code === "invalid_image" ? "Save it as PNG and open it again." : "Try again.";
    return ["The server cannot read this request.", advice];
  }
  if (status === 429) return ["You have had your share for the moment.", "Wait a little."];
  if (status === 504) {
    return ["The server ran out of time.", "Look for fewer objects: choose a coarser search."];
  }
  if (status === 503) return ["The server is busy or still starting.", "Try again in a moment."];
  return [`The server failed (${status}).`, "Try again. If it stays so, look into the server's log."];
}

export const UNREACHABLE = () =>
  new Problem(
    "The server does not answer.",
    "Is it still running, and are you connected? Then try again.",
  );

export function isAbort(error: unknown): boolean {
  return error instanceof DOMException && error.name === "AbortError";
}
