/** The last request, as text to paste into a shell or into Python. */
import { address, type Fields } from "./api";

export interface Asked {
  path: "sam/" | "sam/automask/";
  fields: Fields;
}

export function curl({ path, fields }: Asked, file: string): string {
  return [
    `curl -sS ${quoted(String(address(path)))}`,
    `  -F ${quoted(`image=@"${file.replace(/["\\]/g, "\\$&")}"`)}`,
    `  -F ${quoted(`request=${JSON.stringify(fields)}`)}`,
  ].join(" \\\n");
}

export function python({ path, fields }: Asked, file: string): string {
  return `import json
from pathlib import Path

import requests

fields = json.loads(${pythonText(JSON.stringify(fields))})
answer = requests.post(
    ${pythonText(String(address(path)))},
    files={"image": Path(${pythonText(file)}).read_bytes()},
    data={"request": json.dumps(fields)},
    timeout=600,
)
answer.raise_for_status()
for feature in answer.json():
    print(feature["properties"]["quality"], feature["geometry"])
`;
}

function quoted(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** JSON's text literals are Python's, too. */
function pythonText(text: string): string {
  return JSON.stringify(text);
}
