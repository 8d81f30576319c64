-- Take an idempotency key, unless somebody has it. ARGV[2]: the key; ARGV[3]: the task; ARGV[4]: the fingerprint;
-- ARGV[5]: now (microseconds); ARGV[6]: for how many milliseconds. Gives the task, fingerprint and time that it is held by.

local held = call('GET', KEY .. ARGV[2])
if held then
  return unpacked(held)
end
local claim = { ARGV[3], ARGV[4], ARGV[5] }
call('SET', KEY .. ARGV[2], pack(claim), 'PX', ARGV[6])
return claim
