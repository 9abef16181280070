export default { test: { include: ['src/**/*.spec.ts'], environment: 'node' } };
