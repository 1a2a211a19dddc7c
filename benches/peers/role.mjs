// A script that the driver starts and asks: one message, one answer.

export function role(answers) {
  process.on("message", async ({ what, ...rest }) => {
    try {
      process.send((await answers[what](rest)) ?? {});
    } catch (error) {
      process.send({ failed: error.stack });
    }
  });
  // Without the driver nobody would stop it.
  process.on("disconnect", () => process.exit());
}

// Milliseconds of the clock that all processes of a machine share and nobody sets.
export const now = () => Number(process.hrtime.bigint()) / 1e6;
